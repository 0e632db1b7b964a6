"""The arithmetic `integer` on a CPU, backward: float32 GEMMs between compiled loops, over the codes that were kept."""

import math

import numpy as np
import torch
from torch import Tensor

from octo_exp.graph.train.constants import Gradients, Kept
from octo_exp.graph.train.cpu_layout import (
    centred,
    chunks_of,
    empty_like,
    has_loops,
    images_of,
    is_pointwise,
    loop_sizes,
    parts_of,
    rows_of,
)
from octo_exp.graph.train.float_order import grad_w, grad_x
from octo_exp.kernels.cpu import graph_depthwise, graph_loops
from octo_exp.kernels.cpu.loops import array, use_torch_threads
from octo_exp.kernels.int8 import empty_channels_last

_NONE = np.empty((0, 0), np.float32)


def backward(g: Tensor, kept: Kept) -> Gradients:
    """See `float_order.backward`."""
    use_torch_threads()
    n, channels, *size = kept.x_shape
    dx = None if kept.w is None else empty_channels_last(torch.Size((n, *size, channels)))
    sums = np.empty((g.shape[0], g.shape[1]))
    if has_loops(kept.constants):
        dw = _depthwise_backward(g, kept, dx, sums)
    elif is_pointwise(kept.kernel, kept.constants):
        dw = _pointwise_backward(g, kept, dx, sums)
    else:
        dx, dw = _other_backward(g, kept, sums)
    return Gradients(x=dx, w=dw, b=torch.from_numpy(sums.sum(0).astype(np.float32)) if kept.wants_bias else None)


def _mask(g: Tensor, bits: Tensor, scale: Tensor, h: Tensor, sums: np.ndarray) -> None:
    graph_loops.mask_and_scale(images_of(g), array(bits), array(scale), images_of(h), sums)


def _pointwise_backward(g: Tensor, kept: Kept, dx: Tensor | None, sums: np.ndarray) -> Tensor | None:
    """Fill dx, where there is one, and sums; return dw. Some images at a time."""
    c, codes, w = kept.constants, kept.codes, kept.w
    n, outputs, positions = g.shape[0], g.shape[1], g.shape[2] * g.shape[3]
    chunks = list(chunks_of(n, 4 * outputs * positions))
    gradients, bit_rows, scale = images_of(g), array(kept.bits), array(c.scale)
    h = torch.empty((chunks[0].stop * positions, outputs))
    h_images = array(h).reshape(chunks[0].stop, -1)
    if dx is not None and w is not None:
        # By numpy's views, which cost less than torch's; the memory is torch's, whose GEMMs want it aligned.
        dx_rows, matrix = torch.from_numpy(images_of(dx).reshape(n * positions, -1)), w.flatten(1)
    if codes is not None:
        inputs, dw = images_of(codes), torch.zeros((outputs, codes.shape[1]))
        x = torch.empty((h.shape[0], codes.shape[1]))
    for images in chunks:
        count, rows = images.stop - images.start, slice(images.start * positions, images.stop * positions)
        graph_loops.mask_and_scale(gradients[images], bit_rows[images], scale, h_images[:count], sums[images])
        part = h[: count * positions]
        if dx is not None:
            torch.mm(part, matrix, out=dx_rows[rows])
        if codes is not None:
            share = x[: count * positions]
            graph_loops.centred(inputs[images].reshape(-1), c.x_zero, array(share).reshape(-1))
            dw.addmm_(part.t(), share)
    return None if codes is None else dw.reshape(outputs, -1, 1, 1)


def _depthwise_backward(g: Tensor, kept: Kept, dx: Tensor | None, sums: np.ndarray) -> Tensor | None:
    """Fill dx, where there is one, and sums; return dw of the kept channels."""
    c, codes, channels = kept.constants, kept.codes, kept.channels
    some = 0 if codes is None else codes.shape[1]
    taps = np.empty((g.shape[0], math.prod(kept.kernel), some))
    graph_depthwise.depthwise_backward(
        rows_of(g),
        array(kept.bits),
        array(c.scale),
        _NONE if kept.w is None else images_of(kept.w),
        np.empty((0, 0, 0), np.int8) if codes is None else rows_of(codes),
        c.x_zero,
        np.empty(0, np.int64) if channels is None else array(channels),
        *loop_sizes(kept.x_shape, kept.kernel, c),
        parts_of(g.shape[0]),
        _NONE if dx is None else images_of(dx),
        taps,
        sums,
    )
    if codes is None:
        return None
    # As a parameter lies: autograd copies any other gradient.
    return torch.from_numpy(taps.sum(0).T.astype(np.float32, order="C").reshape(some, 1, *kept.kernel))


def _other_backward(g: Tensor, kept: Kept, sums: np.ndarray) -> tuple[Tensor | None, Tensor | None]:
    """Fill sums; return (dx, dw)."""
    h = empty_like(g)
    _mask(g, kept.bits, kept.constants.scale, h, sums)
    dx = None if kept.w is None else grad_x(h, kept.w, kept)
    dw = None if kept.codes is None else grad_w(h, centred(kept.codes, kept.constants.x_zero), kept)
    return dx, dw


def add_backward(
    g: Tensor, bits: Tensor, scales: tuple[float, ...], want_1: bool, want_2: bool
) -> tuple[Tensor | None, Tensor | None]:
    """g -> gradients of x1 and x2, None for what is not wanted."""
    s1, s2, s_y = scales
    if not (want_1 and want_2):
        return _scaled(g, bits, s1 / s_y) if want_1 else None, _scaled(g, bits, s2 / s_y) if want_2 else None
    first, second = empty_like(g), empty_like(g)
    use_torch_threads()
    factors = (np.float32(s1 / s_y), np.float32(s2 / s_y))
    graph_loops.mask_and_scale_twice(images_of(g), array(bits), *factors, images_of(first), images_of(second))
    return first, second


def _scaled(g: Tensor, bits: Tensor, scale: float) -> Tensor:
    h = empty_like(g)
    use_torch_threads()
    _mask(g, bits, torch.full((1,), scale), h, np.empty((g.shape[0], 1)))
    return h
