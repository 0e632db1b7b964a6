"""The arithmetic `integer` on a CPU, forward: GEMMs between compiled loops.

A pointwise convolution is GEMMs of some images each, so that what lies between stays in the cache; a depthwise one is
loops alone; any other of one group goes through im2col. What passes between convolutions are int8 codes.
"""

import numpy as np
import torch
from torch import Tensor

from octo_exp.graph.train.accumulators import accumulate
from octo_exp.graph.train.constants import ConvConstants
from octo_exp.graph.train.cpu_backward import add_backward, backward
from octo_exp.graph.train.cpu_layout import (
    centred,
    chunks_of,
    empty_bits,
    empty_codes,
    has_loops,
    images_of,
    is_pointwise,
    loop_sizes,
    parts_of,
    rows_of,
)
from octo_exp.graph.train.integer import codes_of
from octo_exp.kernels import int8
from octo_exp.kernels.cpu import graph_depthwise, graph_loops
from octo_exp.kernels.cpu import loops as kernel_loops
from octo_exp.kernels.cpu.conv import multiply
from octo_exp.kernels.cpu.loops import array, use_torch_threads

# What follows the sums: bias, scale, zero point of the output; the output and its bits, which are written.
Steps = tuple[np.ndarray, np.ndarray, np.float32, np.ndarray, np.ndarray]

__all__ = ["add", "add_backward", "backward", "codes_of", "enter", "forward", "leave"]


def enter(x: Tensor) -> Tensor:
    """x [N, C, H, W] float32 -> codes int8, channels-last, rounded."""
    codes = empty_codes(x.shape[0], x.shape[1], (x.shape[2], x.shape[3]))
    use_torch_threads()
    graph_loops.codes_of(images_of(x).reshape(-1), images_of(codes).reshape(-1))
    return codes


def leave(codes: Tensor) -> Tensor:
    """Codes -> float32, channels-last."""
    return centred(codes, 0)


def forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, *, want_bits: bool) -> tuple[Tensor, Tensor]:
    """codes [N, C, H, W] int8 -> (codes of the output, bits): see `float_order.forward`."""
    kernel, taps = (w.shape[2], w.shape[3]), w.shape[1] * w.shape[2] * w.shape[3]
    size = c.geometry.output_size(codes.shape[2], codes.shape[3], kernel)
    out = empty_codes(codes.shape[0], w.shape[0], size)
    bits = empty_bits(out, want_bits)
    steps = (array(b), array(c.scale), np.float32(c.y_zero), images_of(out), array(bits))
    if taps <= graph_depthwise.MAX_TAPS and has_loops(c) and _depthwise_forward(codes, w, size, c, steps):
        return out, bits
    weights = _weight_codes(w) if c.geometry.groups == 1 and taps <= int8.MAX_K // 2 else None
    if weights is not None:
        _gemm_forward(_columns(codes, kernel, size, c), weights, c.x_zero, steps)
    else:
        acc = images_of(accumulate(codes, w.round(), c).float())
        graph_loops.rescale(acc, np.zeros(w.shape[0], np.float32), *steps)
    return out, bits


def _depthwise_forward(codes: Tensor, w: Tensor, out_size: tuple[int, int], c: ConvConstants, steps: Steps) -> bool:
    """Whether it is done: not where a weight is beyond int8."""
    sizes = (*loop_sizes(codes.shape, (w.shape[2], w.shape[3]), c), out_size, parts_of(codes.shape[0]))
    return bool(graph_depthwise.depthwise(rows_of(codes), images_of(w), c.x_zero, *sizes, *steps))


def _weight_codes(w: Tensor) -> np.ndarray | None:
    """w [O, C, KH, KW] float masters -> [O, KH*KW*C] int8, rounded; None where one is beyond it."""
    rows = images_of(w)
    out = np.empty(rows.shape, np.int8)
    return out if graph_loops.weights_of(rows.reshape(-1), out.reshape(-1)) else None


def _gemm_forward(rows: np.ndarray, weights: np.ndarray, x_zero: int, steps: Steps) -> None:
    """rows [N*OH*OW, K], weights [O, K] int8 -> the output and its bits; some images at a time."""
    *constants, out, bits = steps
    positions, outputs = len(rows) // len(out), len(weights)
    matrix, shift = torch.from_numpy(weights.T), np.empty(outputs, np.int32)
    graph_loops.row_sums(weights, x_zero, shift)
    chunks = list(chunks_of(len(out), positions * 4 * outputs))
    buffer = np.empty((chunks[0].stop * positions, outputs), np.int32)
    for images in chunks:
        # Numpy's views: torch's cost more than the loops, where images are few and small.
        a = torch.from_numpy(rows[images.start * positions : images.stop * positions])
        acc = array(multiply(a, matrix, torch.from_numpy(buffer[: len(a)])))
        graph_loops.rescale(acc.reshape(images.stop - images.start, -1), shift, *constants, out[images], bits[images])


def _columns(codes: Tensor, kernel: tuple[int, int], out_size: tuple[int, int], c: ConvConstants) -> np.ndarray:
    """codes [N, C, H, W] -> [N*OH*OW, KH*KW*C], the border filled with x_zero."""
    n, channels, *size = codes.shape
    images = images_of(codes)
    if is_pointwise(kernel, c):
        return images.reshape(-1, channels)
    out = np.empty((n * out_size[0] * out_size[1], kernel[0] * kernel[1] * channels), np.int8)
    steps = (c.geometry.stride, c.geometry.padding, c.geometry.dilation)
    kernel_loops.columns_of_input(images, out, kernel, *steps, tuple(size), out_size, np.int8(c.x_zero))
    return out


def add(
    x1: Tensor, x2: Tensor, scales: tuple[float, ...], zeros: tuple[int, ...], *, want_bits: bool
) -> tuple[Tensor, Tensor]:
    """x1, x2 [N, C, H, W] int8 codes -> (codes of the sum, bits): see `chains.Add`."""
    y = empty_codes(x1.shape[0], x1.shape[1], (x1.shape[2], x1.shape[3]))
    bits = empty_bits(y, want_bits)
    constants = (np.array(scales, np.float32), np.array(zeros, np.float32))
    graph_loops.add(images_of(x1), images_of(x2), *constants, images_of(y), array(bits))
    return y, bits
