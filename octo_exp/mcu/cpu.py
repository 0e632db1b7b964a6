"""The arithmetic `integer` on a CPU: GEMMs between compiled loops, images channels-last throughout.

A pointwise convolution is GEMMs of some images each, so that what lies between stays in the cache; a depthwise one is
loops alone; any other goes through im2col. What passes between convolutions are int8 codes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from octo_exp.kernels import cpu_loops as kernel_loops
from octo_exp.kernels import lowering, torch_int8
from octo_exp.kernels.cpu_elementwise import array, channels_last_rows, empty_channels_last, use_torch_threads
from octo_exp.kernels.geometry import MAX_K
from octo_exp.mcu import cpu_loops
from octo_exp.mcu.accumulators import accumulate
from octo_exp.mcu.constants import ConvConstants, Gradients, select_channels

# Elements of a depthwise loop, at least: a kernel's taps of them fit the first-level cache or nearly.
_RUN = 512
# Bytes of accumulators, or of gradients, that exist at a time.
CHUNK_BYTES = 2**20
_NONE = np.empty((0, 0, 0), np.float32)


def _images(t: Tensor) -> np.ndarray:
    """[N, C, H, W] -> [N, H*W*C], a view where t is channels-last."""
    return array(channels_last_rows(t)).reshape(t.shape[0], -1)


def _rows(t: Tensor) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W*C], a view where t is channels-last."""
    return array(channels_last_rows(t)).reshape(t.shape[0], t.shape[2], -1)


def _empty_codes(n: int, channels: int, size: tuple[int, int]) -> Tensor:
    return torch.empty((n, channels, *size), dtype=torch.int8, memory_format=torch.channels_last)


def _empty_like(t: Tensor) -> Tensor:
    return empty_channels_last(torch.Size((t.shape[0], *t.shape[2:], t.shape[1])))


def _empty_bits(t: Tensor, wanted: bool) -> Tensor:
    n = t.shape[0]
    return torch.empty((n, (t.numel() // n + 7) // 8 if wanted else 0), dtype=torch.uint8)


def _is_pointwise(kernel: tuple[int, int], c: ConvConstants) -> bool:
    g = c.geometry
    return kernel == (1, 1) and g.stride == (1, 1) and g.padding == (0, 0) and g.groups == 1


def _has_loops(c: ConvConstants) -> bool:
    g = c.geometry
    return c.is_depthwise and g.stride[0] == g.stride[1] and g.dilation == (1, 1)


def _tile(row: int, channels: int) -> int:
    """Elements of a row of pixels that a depthwise loop takes at a time: whole pixels."""
    return min(row, channels * -(-_RUN // channels))


def _chunks(images: int, bytes_per_image: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // max(1, bytes_per_image))
    return (slice(start, min(images, start + step)) for start in range(0, images, step))


def enter(x: Tensor) -> Tensor:
    """x [N, C, H, W] float32 -> codes int8, channels-last, rounded."""
    codes = _empty_codes(x.shape[0], x.shape[1], (x.shape[2], x.shape[3]))
    use_torch_threads()
    cpu_loops.codes_of(_images(x).reshape(-1), _images(codes).reshape(-1))
    return codes


def leave(codes: Tensor) -> Tensor:
    """Codes -> float32, channels-last."""
    return _centred(codes, 0)


def _centred(codes: Tensor, zero: int) -> Tensor:
    """codes - zero as float32, channels-last."""
    out = _empty_like(codes)
    cpu_loops.centred(_images(codes).reshape(-1), zero, _images(out).reshape(-1))
    return out


def forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, *, want_bits: bool) -> tuple[Tensor, Tensor]:
    """codes [N, C, H, W] int8 -> (codes of the output, bits): see `float_order.forward`."""
    kernel = (w.shape[2], w.shape[3])
    size = c.geometry.output_size(codes.shape[2], codes.shape[3], kernel)
    out = _empty_codes(codes.shape[0], w.shape[0], size)
    bits = _empty_bits(out, want_bits)
    weights = _weight_codes(w)
    if weights is None or w[0].numel() > MAX_K or (c.geometry.groups > 1 and not _has_loops(c)):
        acc = _images(accumulate(codes, w.round(), c))
        _rescale(acc, np.zeros(w.shape[0], acc.dtype), b, c, _images(out), array(bits))
    elif _has_loops(c):
        _depthwise_forward(codes, weights, b, c, out, bits)
    else:
        _gemm_forward(codes, weights, b, c, out, bits)
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
    shift = array(c.x_zero * matrix.sum(1, dtype=torch.int32))
    rows = _columns(codes, kernel, c)
    chunks = list(_chunks(codes.shape[0], positions * 4 * w.shape[0]))
    buffer = torch.empty((chunks[0].stop * positions, w.shape[0]), dtype=torch.int32)
    outputs, bit_rows, matrix = _images(out), array(bits), matrix.t()
    for images in chunks:
        a = rows[images.start * positions : images.stop * positions]
        acc = array(torch_int8.matmul(a, matrix, buffer[: a.shape[0]])).reshape(images.stop - images.start, -1)
        _rescale(acc, shift, b, c, outputs[images], bit_rows[images])


def _columns(codes: Tensor, kernel: tuple[int, int], c: ConvConstants) -> Tensor:
    """codes [N, C, H, W] -> [N*OH*OW, KH*KW*C], the border filled with x_zero."""
    if _is_pointwise(kernel, c):
        return channels_last_rows(codes).flatten(0, 2)
    g, size = c.geometry, (codes.shape[2], codes.shape[3])
    out_size = g.output_size(*size, kernel)
    rows, width = codes.shape[0] * out_size[0] * out_size[1], kernel[0] * kernel[1] * codes.shape[1]
    out = torch.empty((rows, width), dtype=torch.int8)
    steps = (g.stride, g.padding, g.dilation, size, out_size)
    kernel_loops.columns_of_input(_images(codes), array(out), kernel, *steps, np.int8(c.x_zero))
    return out


def _loop_sizes(codes_shape: torch.Size, kernel: tuple[int, int], c: ConvConstants) -> tuple[Any, ...]:
    """Return what depthwise loops ask for: kernel, stride, padding, (H, W)."""
    return kernel, c.geometry.stride[0], c.geometry.padding, (codes_shape[2], codes_shape[3])


def _parts(images: int) -> int:
    return max(1, min(torch.get_num_threads(), images))


def _depthwise_forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, out: Tensor, bits: Tensor) -> None:
    channels, row = w.shape[0], out.shape[3] * out.shape[1]
    sizes = (*_loop_sizes(codes.shape, (w.shape[2], w.shape[3]), c), _tile(row, channels), _parts(codes.shape[0]))
    constants = (array(b), array(c.scale), np.float32(c.y_zero), (out.shape[2], row))
    weights = array(w.flatten(1))
    cpu_loops.depthwise(_rows(codes), weights, c.x_zero, *sizes, *constants, _images(out), array(bits))


def backward(
    g: Tensor,
    bits: Tensor,
    c: ConvConstants,
    *,
    w: Tensor | None,
    x_shape: torch.Size,
    codes: Tensor | None,
    kernel: tuple[int, int],
    kept: Tensor | None,
    want_bias: bool,
) -> Gradients:
    """See `float_order.backward`."""
    use_torch_threads()
    dx = None if w is None else empty_channels_last(torch.Size((x_shape[0], *x_shape[2:], x_shape[1])))
    sums = np.empty((g.shape[0], g.shape[1]))
    if _has_loops(c):
        dw = _depthwise_backward(g, bits, c, w, x_shape, codes, kernel, kept, dx, sums)
    elif _is_pointwise(kernel, c):
        dw = _pointwise_backward(g, bits, c, w, codes, dx, sums)
    else:
        dx, dw = _other_backward(g, bits, c, w, x_shape, codes, kernel, kept, sums)
    return Gradients(x=dx, w=dw, b=torch.from_numpy(sums.sum(0).astype(np.float32)) if want_bias else None)


def _mask(g: Tensor, bits: Tensor, scale: Tensor, h: Tensor, sums: np.ndarray) -> None:
    cpu_loops.mask_and_scale(_images(g), array(bits), array(scale), _images(h), sums)


def _pointwise_backward(
    g: Tensor,
    bits: Tensor,
    c: ConvConstants,
    w: Tensor | None,
    codes: Tensor | None,
    dx: Tensor | None,
    sums: np.ndarray,
) -> Tensor | None:
    """Fill dx, where there is one, and sums; return dw. Some images at a time."""
    n, outputs, positions = g.shape[0], g.shape[1], g.shape[2] * g.shape[3]
    chunks = list(_chunks(n, 4 * outputs * positions))
    h = torch.empty((chunks[0].stop * positions, outputs))
    gradients, bit_rows, scale, h_images = _images(g), array(bits), array(c.scale), array(h).reshape(chunks[0].stop, -1)
    if dx is not None:
        dx_rows, matrix = channels_last_rows(dx).flatten(0, 2), w.flatten(1)
    if codes is not None:
        dw, inputs, x = (
            torch.zeros((outputs, codes.shape[1])),
            _images(codes),
            h.new_empty((h.shape[0], codes.shape[1])),
        )
    for images in chunks:
        count, rows = images.stop - images.start, slice(images.start * positions, images.stop * positions)
        cpu_loops.mask_and_scale(gradients[images], bit_rows[images], scale, h_images[:count], sums[images])
        part = h[: count * positions]
        if dx is not None:
            torch.mm(part, matrix, out=dx_rows[rows])
        if codes is not None:
            share = x[: count * positions]
            cpu_loops.centred(inputs[images].reshape(-1), c.x_zero, array(share).reshape(-1))
            dw.addmm_(part.t(), share)
    return None if codes is None else dw.reshape(outputs, -1, 1, 1)


def _depthwise_backward(
    g: Tensor,
    bits: Tensor,
    c: ConvConstants,
    w: Tensor | None,
    x_shape: torch.Size,
    codes: Tensor | None,
    kernel: tuple[int, int],
    kept: Tensor | None,
    dx: Tensor | None,
    sums: np.ndarray,
) -> Tensor | None:
    """Fill dx, where there is one, and sums; return dw of the kept channels."""
    channels, width, some = g.shape[1], g.shape[3], 0 if codes is None else codes.shape[1]
    tiles = (_tile(width * channels, channels), _tile(width * some, some) if some else 0)
    taps = np.empty((g.shape[0], kernel[0] * kernel[1], some))
    cpu_loops.depthwise_backward(
        _rows(g),
        array(bits),
        array(c.scale),
        np.empty((0, 0), np.float32) if w is None else array(w.flatten(1)),
        np.empty((0, 0, 0), np.int8) if codes is None else _rows(codes),
        c.x_zero,
        np.empty(0, np.int64) if kept is None else array(kept),
        *_loop_sizes(x_shape, kernel, c),
        tiles,
        _parts(g.shape[0]),
        _NONE if dx is None else _rows(dx),
        taps,
        sums,
    )
    if codes is None:
        return None
    return torch.from_numpy(taps.sum(0).astype(np.float32)).t().reshape(some, 1, *kernel)


def _other_backward(
    g: Tensor,
    bits: Tensor,
    c: ConvConstants,
    w: Tensor | None,
    x_shape: torch.Size,
    codes: Tensor | None,
    kernel: tuple[int, int],
    kept: Tensor | None,
    sums: np.ndarray,
) -> tuple[Tensor | None, Tensor | None]:
    """Fill sums; return (dx, dw)."""
    h = _empty_like(g)
    _mask(g, bits, c.scale, h, sums)
    steps = (c.geometry.stride, c.geometry.padding, c.geometry.dilation)
    dx = None if w is None else conv2d_input(x_shape, w, h, *steps, c.geometry.groups)
    if codes is None:
        return dx, None
    groups = c.geometry.groups
    if kept is not None and c.is_depthwise:
        h, groups = select_channels(h, kept), len(kept)
    shape = torch.Size((h.shape[1], codes.shape[1] // groups, *kernel))
    return dx, conv2d_weight(_centred(codes, c.x_zero), shape, h, *steps, groups)


def add(
    x1: Tensor, x2: Tensor, scales: tuple[float, ...], zeros: tuple[int, ...], *, want_bits: bool
) -> tuple[Tensor, Tensor]:
    """x1, x2 [N, C, H, W] int8 codes -> (codes of the sum, bits): see `ops.Add`."""
    y = _empty_codes(x1.shape[0], x1.shape[1], (x1.shape[2], x1.shape[3]))
    bits = _empty_bits(y, want_bits)
    constants = (np.array(scales, np.float32), np.array(zeros, np.float32))
    cpu_loops.add(_images(x1), _images(x2), *constants, _images(y), array(bits))
    return y, bits


def add_backward(
    g: Tensor, bits: Tensor, scales: tuple[float, ...], want_1: bool, want_2: bool
) -> tuple[Tensor | None, Tensor | None]:
    """g -> gradients of x1 and x2, None for what is not wanted."""
    s1, s2, s_y = scales
    if not (want_1 and want_2):
        return _scaled(g, bits, s1 / s_y) if want_1 else None, _scaled(g, bits, s2 / s_y) if want_2 else None
    first, second = _empty_like(g), _empty_like(g)
    use_torch_threads()
    factors = (np.float32(s1 / s_y), np.float32(s2 / s_y))
    cpu_loops.mask_and_scale_twice(_images(g), array(bits), *factors, _images(first), _images(second))
    return first, second


def _scaled(g: Tensor, bits: Tensor, scale: float) -> Tensor:
    h = _empty_like(g)
    use_torch_threads()
    _mask(g, bits, torch.full((1,), scale), h, np.empty((g.shape[0], 1)))
    return h
