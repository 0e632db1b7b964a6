"""The arithmetic `integer` on a CPU, forward: GEMMs between compiled loops.

A pointwise convolution is GEMMs of some images each, so that what lies between stays in the cache; a depthwise one is
loops alone; any other of one group goes through im2col. What passes between convolutions are int8 codes.
"""

import numpy as np
import torch
from torch import Tensor

from octo_exp.kernels import cpu_loops as kernel_loops
from octo_exp.kernels import lowering, torch_int8
from octo_exp.kernels.cpu_elementwise import array, channels_last_rows, use_torch_threads
from octo_exp.kernels.geometry import MAX_K
from octo_exp.mcu import cpu_depthwise, cpu_loops
from octo_exp.mcu.accumulators import accumulate
from octo_exp.mcu.constants import ConvConstants
from octo_exp.mcu.cpu_backward import add_backward, backward
from octo_exp.mcu.cpu_layout import (
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

__all__ = ["add", "add_backward", "backward", "enter", "forward", "leave"]


def enter(x: Tensor) -> Tensor:
    """x [N, C, H, W] float32 -> codes int8, channels-last, rounded."""
    codes = empty_codes(x.shape[0], x.shape[1], (x.shape[2], x.shape[3]))
    use_torch_threads()
    cpu_loops.codes_of(images_of(x).reshape(-1), images_of(codes).reshape(-1))
    return codes


def leave(codes: Tensor) -> Tensor:
    """Codes -> float32, channels-last."""
    return centred(codes, 0)


def forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, *, want_bits: bool) -> tuple[Tensor, Tensor]:
    """codes [N, C, H, W] int8 -> (codes of the output, bits): see `float_order.forward`."""
    kernel = (w.shape[2], w.shape[3])
    size = c.geometry.output_size(codes.shape[2], codes.shape[3], kernel)
    out = empty_codes(codes.shape[0], w.shape[0], size)
    bits = empty_bits(out, want_bits)
    weights, taps = _weight_codes(w), w[0].numel()
    if weights is not None and has_loops(c) and taps <= cpu_depthwise.MAX_TAPS:
        _depthwise_forward(codes, weights, b, c, out, bits)
    elif weights is not None and c.geometry.groups == 1 and taps <= MAX_K // 2:
        _gemm_forward(codes, weights, b, c, out, bits)
    else:
        acc = images_of(accumulate(codes, w.round(), c).float())
        _rescale(acc, np.zeros(w.shape[0], np.float32), b, c, images_of(out), array(bits))
    return out, bits


def _weight_codes(w: Tensor) -> Tensor | None:
    """w float masters -> int8, rounded; None where one is beyond it."""
    out = torch.empty(w.shape, dtype=torch.int8)
    inside = cpu_loops.weights_of(array(w.contiguous()).reshape(-1), array(out).reshape(-1))
    return out if inside else None


def _rescale(
    acc: np.ndarray, shift: np.ndarray, b: Tensor, c: ConvConstants, out: np.ndarray, bits: np.ndarray
) -> None:
    cpu_loops.rescale(acc, shift, array(b), array(c.scale), np.float32(c.y_zero), out, bits)


def _gemm_forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, out: Tensor, bits: Tensor) -> None:
    kernel, positions = (w.shape[2], w.shape[3]), out.shape[2] * out.shape[3]
    matrix = lowering.weight_matrix(w)
    shift = np.empty(w.shape[0], np.int32)
    cpu_loops.row_sums(array(matrix), c.x_zero, shift)
    rows = _columns(codes, kernel, c)
    chunks = list(chunks_of(codes.shape[0], positions * 4 * w.shape[0]))
    buffer = torch.empty((chunks[0].stop * positions, w.shape[0]), dtype=torch.int32)
    outputs, bit_rows, matrix = images_of(out), array(bits), matrix.t()
    for images in chunks:
        a = rows[images.start * positions : images.stop * positions]
        acc = array(torch_int8.matmul(a, matrix, buffer[: a.shape[0]])).reshape(images.stop - images.start, -1)
        _rescale(acc, shift, b, c, outputs[images], bit_rows[images])


def _columns(codes: Tensor, kernel: tuple[int, int], c: ConvConstants) -> Tensor:
    """codes [N, C, H, W] -> [N*OH*OW, KH*KW*C], the border filled with x_zero."""
    if is_pointwise(kernel, c):
        return channels_last_rows(codes).flatten(0, 2)
    g, size = c.geometry, (codes.shape[2], codes.shape[3])
    out_size = g.output_size(*size, kernel)
    rows, width = codes.shape[0] * out_size[0] * out_size[1], kernel[0] * kernel[1] * codes.shape[1]
    out = torch.empty((rows, width), dtype=torch.int8)
    steps = (g.stride, g.padding, g.dilation, size, out_size)
    kernel_loops.columns_of_input(images_of(codes), array(out), kernel, *steps, np.int8(c.x_zero))
    return out


def _depthwise_forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, out: Tensor, bits: Tensor) -> None:
    sizes = (*loop_sizes(codes.shape, (w.shape[2], w.shape[3]), c), (out.shape[2], out.shape[3]), parts_of(len(codes)))
    constants = (array(b), array(c.scale), np.float32(c.y_zero))
    weights = array(w.flatten(1))
    cpu_depthwise.depthwise(rows_of(codes), weights, c.x_zero, *sizes, *constants, images_of(out), array(bits))


def add(
    x1: Tensor, x2: Tensor, scales: tuple[float, ...], zeros: tuple[int, ...], *, want_bits: bool
) -> tuple[Tensor, Tensor]:
    """x1, x2 [N, C, H, W] int8 codes -> (codes of the sum, bits): see `ops.Add`."""
    y = empty_codes(x1.shape[0], x1.shape[1], (x1.shape[2], x1.shape[3]))
    bits = empty_bits(y, want_bits)
    constants = (np.array(scales, np.float32), np.array(zeros, np.float32))
    cpu_loops.add(images_of(x1), images_of(x2), *constants, images_of(y), array(bits))
    return y, bits
