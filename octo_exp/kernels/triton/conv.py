"""int8 convolutions in Triton as implicit GEMMs: tiles of columns are gathered from the image, and no im2col exists.

Images are NHWC; the reduced index runs over (kernel row, kernel column, channel). One group.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from octo_exp.kernels.finish import Finish, Pad
from octo_exp.kernels.int8 import ConvGeometry, channels_last_rows
from octo_exp.kernels.triton.autotune import TILES, Blocks, choose
from octo_exp.kernels.triton.gemm import epilogue_arguments, store_finished

# Few outputs and a long sum: without parts most of a device would wait.
SPLIT_TILES = tuple(replace(tile, parts=parts) for parts in (4, 16, 64, 1) for tile in TILES[:3])


@triton.jit
def _source(at, tap, extent, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Where output position `at` reads through tap `tap`, and whether that is inside.

    Transposed: the output position that read input position `at` through it, and whether there is one.
    """
    if TRANSPOSED:
        reach = at + PAD - tap * DILATION
        place = reach // STRIDE
        inside = (reach >= 0) & (place * STRIDE == reach) & (place < extent)
    else:
        place = at * STRIDE - PAD + tap * DILATION
        inside = (place >= 0) & (place < extent)
    return place, inside


@triton.jit
def _conv(
    t_ptr,
    w_ptr,
    out_ptr,
    scale_ptr,
    offset_ptr,
    pad_ptr,
    m,
    n,
    height,
    width,
    out_height,
    out_width,
    w_stride_tap,
    w_stride_channel,
    w_stride_n,
    scale_stride,
    offset_rows,
    CHANNELS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    RELU: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    # Neighbors gather the same pixels.
    tiles = tl.cdiv(n, BN)
    rows = tl.program_id(0) // tiles * BM + tl.arange(0, BM)
    columns = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    y, x = (rows // out_width % out_height)[:, None], (rows % out_width)[:, None]
    image = t_ptr + (rows // (out_height * out_width)).to(tl.int64)[:, None] * (height * width * CHANNELS)
    acc = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, KH * KW * CHANNELS, BK):
        ks = start + tl.arange(0, BK)
        tap, channel = ks // CHANNELS, ks % CHANNELS
        row, row_inside = _source(y, (tap // KW)[None, :], height, SH, PH, DH, TRANSPOSED)
        column, column_inside = _source(x, (tap % KW)[None, :], width, SW, PW, DW, TRANSPOSED)
        inside = row_inside & column_inside & (rows[:, None] < m) & (tap[None, :] < KH * KW)
        a = tl.load(image + (row * width + column) * CHANNELS + channel[None, :], mask=inside, other=0)
        if pad_ptr is not None:
            # Also beyond the last tap, where the weight is 0.
            a = tl.where(inside, a, tl.load(pad_ptr))
        place = (tap * w_stride_tap + channel * w_stride_channel)[:, None] + (columns * w_stride_n)[None, :]
        b = tl.load(w_ptr + place, mask=(tap[:, None] < KH * KW) & (columns[None, :] < n), other=0)
        acc = tl.dot(a, b, acc, out_dtype=tl.int32)
    store_finished(acc, rows, columns, m, n, out_ptr, scale_ptr, scale_stride, offset_ptr, offset_rows, RELU)


@triton.jit
def _grad_weight(
    x_ptr,
    g_ptr,
    out_ptr,
    pad_ptr,
    outputs,
    positions,
    part_length,
    height,
    width,
    out_height,
    out_width,
    CHANNELS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tiles = tl.cdiv(KH * KW * CHANNELS, BN)
    rows = tl.program_id(0) // tiles * BM + tl.arange(0, BM)
    ks = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    tap, channel = (ks // CHANNELS)[None, :], (ks % CHANNELS)[None, :]
    first = tl.program_id(1) * part_length
    last = tl.minimum(first + part_length, positions)
    acc = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(first, last, BK):
        at = start + tl.arange(0, BK)
        y, x = (at // out_width % out_height)[:, None], (at % out_width)[:, None]
        image = x_ptr + (at // (out_height * out_width)).to(tl.int64)[:, None] * (height * width * CHANNELS)
        row, row_inside = _source(y, tap // KW, height, SH, PH, DH, False)
        column, column_inside = _source(x, tap % KW, width, SW, PW, DW, False)
        inside = row_inside & column_inside & (at[:, None] < last) & (tap < KH * KW)
        b = tl.load(image + (row * width + column) * CHANNELS + channel, mask=inside, other=0)
        if pad_ptr is not None:
            # Also beyond the last position, where the gradient is 0.
            b = tl.where(inside, b, tl.load(pad_ptr))
        place = at[None, :].to(tl.int64) * outputs + rows[:, None]
        a = tl.load(g_ptr + place, mask=(rows[:, None] < outputs) & (at[None, :] < last), other=0)
        acc = tl.dot(a, b, acc, out_dtype=tl.int32)
    target = out_ptr + rows[:, None] * (KH * KW * CHANNELS) + ks[None, :]
    # Integers: the order of the additions changes nothing.
    tl.atomic_add(target, acc, mask=(rows[:, None] < outputs) & (tap < KH * KW), sem="relaxed")


def _constants(channels: int, kernel: tuple[int, int], geometry: ConvGeometry) -> dict[str, int]:
    """Return what both kernels know at compile time; its values are part of the key of their blocks."""
    values = (channels, *kernel, *geometry.stride, *geometry.padding, *geometry.dilation)
    return dict(zip(("CHANNELS", "KH", "KW", "SH", "SW", "PH", "PW", "DH", "DW"), values, strict=True))


def _pad(pad_value: Pad, geometry: ConvGeometry, device: torch.device) -> Tensor | None:
    """Return the border's code on the device, None where there is no border or it is 0."""
    if geometry.padding == (0, 0) or (isinstance(pad_value, int) and pad_value == 0):
        return None
    if isinstance(pad_value, int):
        return torch.full((), pad_value, dtype=torch.int8, device=device)
    return pad_value.to(device=device, dtype=torch.int8)


def _convolve(
    t: Tensor,
    w: Tensor,
    out_shape: tuple[int, int, int, int],
    constants: dict[str, int],
    w_strides: tuple[int, int, int],
    pad: Tensor | None,
    finish: Finish,
    *,
    transposed: bool,
) -> Tensor:
    """t [N, C, H, W], w [O, C', KH, KW] -> [N, C', H', W'] float32, channels-last, for `out_shape` in that order."""
    t, w = channels_last_rows(t), channels_last_rows(w)
    images, n, out_height, out_width = out_shape
    m = images * out_height * out_width
    out = torch.empty(out_shape, device=t.device, memory_format=torch.channels_last)
    scale, offset, scale_stride, offset_rows = epilogue_arguments(finish, n)
    sizes = (m, n, t.shape[1], t.shape[2], out_height, out_width, *w_strides, scale_stride, offset_rows)
    flags = {**constants, "TRANSPOSED": transposed, "RELU": finish.is_relu}

    def run(blocks: Blocks) -> None:
        tile = {"BM": blocks.m, "BN": blocks.n, "BK": blocks.k}
        grid = (triton.cdiv(m, blocks.m) * triton.cdiv(n, blocks.n),)
        _conv[grid](t, w, out, scale, offset, pad, *sizes, **flags, **tile, **blocks.launch_options())

    kernel = "conv_grad_input" if transposed else "conv"
    key = (triton.next_power_of_2(images), n, out_height, out_width, *constants.values())
    run(choose(kernel, key, t.device, run))
    return out


def conv2d(x: Tensor, w: Tensor, geometry: ConvGeometry, pad_value: Pad, finish: Finish) -> Tensor:
    """x [N, C, H, W], w [O, C, KH, KW] int8 -> conv*scale + offset, [N, O, OH, OW] float32, channels-last.

    The border of x is `pad_value`; scale is a scalar or [O], offset [O], [O, OH, OW] or None. ReLU is done where it is
    all that follows.
    """
    kernel = (w.shape[2], w.shape[3])
    constants = _constants(x.shape[1], kernel, geometry)
    out_shape = (x.shape[0], w.shape[0], *geometry.output_size(x.shape[2], x.shape[3], kernel))
    strides = (w.shape[1], 1, w[0].numel())
    pad = _pad(pad_value, geometry, x.device)
    return _convolve(x, w, out_shape, constants, strides, pad, finish, transposed=False)


def conv2d_grad_input(g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, scale: Tensor) -> Tensor:
    """g [N, O, OH, OW], w [O, C, KH, KW] int8 -> dx * scale, [N, C, H, W] float32, channels-last; size is (H, W)."""
    constants = _constants(g.shape[1], (w.shape[2], w.shape[3]), geometry)
    out_shape = (g.shape[0], w.shape[1], *size)
    strides = (w.shape[1], w[0].numel(), 1)
    return _convolve(g, w, out_shape, constants, strides, None, Finish(scale), transposed=True)


def conv2d_grad_weight(x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Pad) -> Tensor:
    """x [N, C, H, W], g [N, O, OH, OW] int8 -> dw [O, KH*KW*C] int32, exact: partial sums are added as integers."""
    x, g, pad = channels_last_rows(x), channels_last_rows(g), _pad(pad_value, geometry, x.device)
    images, height, width, channels = x.shape
    outputs, positions = g.shape[3], images * g.shape[1] * g.shape[2]
    constants = _constants(channels, kernel, geometry)
    out = torch.empty((outputs, kernel[0] * kernel[1] * channels), dtype=torch.int32, device=x.device)

    def run(blocks: Blocks) -> None:
        out.zero_()
        part_length = triton.cdiv(triton.cdiv(positions, blocks.parts), blocks.k) * blocks.k
        tiles = triton.cdiv(outputs, blocks.m) * triton.cdiv(out.shape[1], blocks.n)
        sizes = (outputs, positions, part_length, height, width, g.shape[1], g.shape[2])
        tile = {"BM": blocks.m, "BN": blocks.n, "BK": blocks.k}
        grid = (tiles, triton.cdiv(positions, part_length))
        _grad_weight[grid](x, g, out, pad, *sizes, **constants, **tile, **blocks.launch_options())

    key = (triton.next_power_of_2(images), outputs, height, width, *constants.values())
    run(choose("conv_grad_weight", key, x.device, run, SPLIT_TILES))
    return out
