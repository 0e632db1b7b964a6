"""Convolutions as integer products: im2col and three GEMMs, or tap by tap where a group has one channel.

Tensors are NCHW by shape and channels-last in memory, so a pixel's channels are adjacent and im2col is a strided view
plus one copy of int8. `matmul` is a backend's exact product ([M, K] int8, [K, N] int8 -> [M, N]). Depthwise there is no
GEMM to be had, so int32 multiply-adds on any device; sums over batch and positions are int64.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from octo_exp.kernels.finish import Pad
from octo_exp.kernels.int8 import ConvGeometry

MatMul = Callable[[Tensor, Tensor], Tensor]


def pad_channels_last(x: Tensor, padding: tuple[int, int], pad_value: Pad) -> Tensor:
    """NCHW [N, C, H, W] -> NHWC [N, H + 2ph, W + 2pw, C], the border filled with `pad_value`."""
    nhwc = x.permute(0, 2, 3, 1)
    ph, pw = padding
    if ph == 0 and pw == 0:
        return nhwc.contiguous()
    n, h, w, c = nhwc.shape
    out = x.new_empty((n, h + 2 * ph, w + 2 * pw, c))
    # On a device the value stays a tensor, so that nothing waits for it.
    value = int(pad_value) if isinstance(pad_value, Tensor) and pad_value.device.type == "cpu" else pad_value
    # Only the border is filled: the inside is written once.
    for border in (out[:, :ph], out[:, h + ph :], out[:, ph : h + ph, :pw], out[:, ph : h + ph, w + pw :]):
        border.fill_(value)
    out[:, ph : h + ph, pw : w + pw] = nhwc
    return out


def im2col(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """NHWC [N, H, W, C], padded -> columns [N*OH*OW, KH*KW*C], in the order (kernel row, kernel column, channel)."""
    n, h, w, c = x.shape
    geometry = ConvGeometry(stride=stride, dilation=dilation)
    oh, ow = geometry.output_size(h, w, kernel)
    sn, sh, sw, sc = x.stride()
    shape = (n, oh, ow, *kernel, c)
    strides = (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc)
    return x.as_strided(shape, strides, x.storage_offset()).reshape(n * oh * ow, kernel[0] * kernel[1] * c)


def weight_matrix(w: Tensor) -> Tensor:
    """[O, C, KH, KW] -> [O, KH*KW*C], the column order of `im2col`."""
    return w.permute(0, 2, 3, 1).reshape(w.shape[0], -1)


def _to_nchw(rows: Tensor, n: int, h: int, w: int) -> Tensor:
    return rows.reshape(n, h, w, rows.shape[1]).permute(0, 3, 1, 2)


def _spread(g: Tensor, size: tuple[int, int], kernel: tuple[int, int], geometry: ConvGeometry) -> Tensor:
    """The gradient on the canvas whose stride-1 correlation with the flipped kernel is grad_input.

    Output position o of the forward pass lies at o*s - p + d(k-1); positions between strides hold 0. NHWC.
    """
    n, o, *extents = g.shape
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, kernel, strict=True)]
    canvas = g.new_zeros((n, size[0] + reach[0], size[1] + reach[1], o))
    targets, sources = [], []
    for axis in range(2):
        s, start = geometry.stride[axis], reach[axis] - geometry.padding[axis]
        skip = max(0, -(start // s)) if start < 0 else 0
        first = start + skip * s
        count = min(extents[axis] - skip, (canvas.shape[1 + axis] - first + s - 1) // s)
        targets.append(slice(first, first + (count - 1) * s + 1, s))
        sources.append(slice(skip, skip + count))
    canvas[:, targets[0], targets[1]] = g.permute(0, 2, 3, 1)[:, sources[0], sources[1]]
    return canvas


def conv2d(x: Tensor, w: Tensor, geometry: ConvGeometry, pad_value: Pad, matmul: MatMul) -> Tensor:
    """x [N, C, H, W], w [O, C/G, KH, KW] int8 -> [N, O, OH, OW]: columns(x) @ w^T for each group."""
    if _is_depthwise(w.shape[1], geometry):
        return _depthwise(x, w, geometry, pad_value)
    kernel = (w.shape[2], w.shape[3])
    oh, ow = geometry.output_size(x.shape[2], x.shape[3], kernel)
    padded = pad_channels_last(x, geometry.padding, pad_value)
    parts = []
    for xg, wg in zip(padded.chunk(geometry.groups, dim=3), w.chunk(geometry.groups, dim=0), strict=True):
        columns = im2col(xg, kernel, geometry.stride, geometry.dilation)
        parts.append(_to_nchw(matmul(columns, weight_matrix(wg).t()), x.shape[0], oh, ow))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def conv2d_grad_input(g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, matmul: MatMul) -> Tensor:
    """g [N, O, OH, OW], w [O, C/G, KH, KW] int8 -> [N, C, H, W]: im2col of g against the flipped kernel.

    The implicit form: it needs no scatter-add of int32 columns (col2im), whose traffic is KH*KW times the output's.
    """
    if _is_depthwise(w.shape[1], geometry):
        return _depthwise_grad_input(g, w, size, geometry)
    n, kernel = g.shape[0], (w.shape[2], w.shape[3])
    parts = []
    for gg, wg in zip(g.chunk(geometry.groups, dim=1), w.chunk(geometry.groups, dim=0), strict=True):
        columns = im2col(_spread(gg, size, kernel, geometry), kernel, (1, 1), geometry.dilation)
        flipped = weight_matrix(wg.flip(2, 3).transpose(0, 1))
        parts.append(_to_nchw(matmul(columns, flipped.t()), n, *size))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def conv2d_grad_weight(
    x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Pad, matmul: MatMul
) -> Tensor:
    """x [N, C, H, W], g [N, O, OH, OW] int8 -> [O, C/G, KH, KW]: g^T @ columns(x), so K = N*OH*OW."""
    if _is_depthwise(x.shape[1] // geometry.groups, geometry):
        return _depthwise_grad_weight(x, g, kernel, geometry, pad_value)
    padded = pad_channels_last(x, geometry.padding, pad_value)
    rows = g.permute(0, 2, 3, 1)
    parts = []
    for xg, gg in zip(padded.chunk(geometry.groups, dim=3), rows.chunk(geometry.groups, dim=3), strict=True):
        columns = im2col(xg, kernel, geometry.stride, geometry.dilation)
        # A last row or column that no window reaches is dropped by im2col, as it is in the forward pass.
        product = matmul(gg.reshape(-1, gg.shape[3]).t(), columns)
        parts.append(product.reshape(gg.shape[3], *kernel, -1).permute(0, 3, 1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=0)


def _is_depthwise(weight_channels: int, geometry: ConvGeometry) -> bool:
    return geometry.groups > 1 and weight_channels == 1


def _taps(
    kernel: tuple[int, int], out: tuple[int, int], geometry: ConvGeometry
) -> Iterator[tuple[int, int, slice, slice]]:
    """(kernel row, kernel column, rows, columns): the padded input positions that each tap reads."""
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    for i in range(kernel[0]):
        rows = slice(i * dh, i * dh + (out[0] - 1) * sh + 1, sh)
        for j in range(kernel[1]):
            yield i, j, rows, slice(j * dw, j * dw + (out[1] - 1) * sw + 1, sw)


def _depthwise(x: Tensor, w: Tensor, geometry: ConvGeometry, pad_value: Pad) -> Tensor:
    """x [N, C, H, W], w [C*m, 1, KH, KW] int8 -> [N, C*m, OH, OW] int32."""
    n, c, h, wd = x.shape
    kernel = (w.shape[2], w.shape[3])
    oh, ow = geometry.output_size(h, wd, kernel)
    padded = pad_channels_last(x, geometry.padding, pad_value).to(torch.int32)
    taps = w.to(torch.int32).reshape(c, -1, *kernel)
    acc = padded.new_zeros((n, oh, ow, c, taps.shape[1]))
    for i, j, rows, columns in _taps(kernel, (oh, ow), geometry):
        acc += padded[:, rows, columns].unsqueeze(4) * taps[:, :, i, j]
    return acc.flatten(3).permute(0, 3, 1, 2)


def _depthwise_grad_input(g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry) -> Tensor:
    """g [N, C*m, OH, OW], w [C*m, 1, KH, KW] int8 -> [N, C, H, W] int32: each tap adds back where it read."""
    n, _, oh, ow = g.shape
    c, kernel = geometry.groups, (w.shape[2], w.shape[3])
    (ph, pw), (h, wd) = geometry.padding, size
    rows32 = g.permute(0, 2, 3, 1).to(torch.int32).reshape(n, oh, ow, c, -1)
    taps = w.to(torch.int32).reshape(c, -1, *kernel)
    canvas = rows32.new_zeros((n, h + 2 * ph, wd + 2 * pw, c))
    for i, j, rows, columns in _taps(kernel, (oh, ow), geometry):
        canvas[:, rows, columns] += (rows32 * taps[:, :, i, j]).sum(4, dtype=torch.int32)
    return canvas[:, ph : ph + h, pw : pw + wd].permute(0, 3, 1, 2)


def _depthwise_grad_weight(
    x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Pad
) -> Tensor:
    """x [N, C, H, W], g [N, C*m, OH, OW] int8 -> [C*m, 1, KH, KW] int64."""
    n, c = x.shape[:2]
    oh, ow = g.shape[2:]
    padded = pad_channels_last(x, geometry.padding, pad_value).to(torch.int32)
    rows32 = g.permute(0, 2, 3, 1).to(torch.int32).reshape(n, oh, ow, c, -1)
    out = torch.empty((c, rows32.shape[4], *kernel), dtype=torch.int64, device=x.device)
    for i, j, rows, columns in _taps(kernel, (oh, ow), geometry):
        out[:, :, i, j] = (padded[:, rows, columns].unsqueeze(4) * rows32).sum((0, 1, 2), dtype=torch.int64)
    return out.reshape(-1, 1, *kernel)
