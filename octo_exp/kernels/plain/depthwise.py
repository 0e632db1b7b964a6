"""Depthwise convolution (one input channel a group) tap by tap: no GEMM to be had, so int32 multiply-adds.

Every operation runs on int32 tensors of any device and is exact; sums over batch and positions are int64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from octo_exp.kernels.geometry import ConvGeometry
from octo_exp.kernels.plain.lowering import pad_channels_last


def _taps(
    kernel: tuple[int, int], out: tuple[int, int], geometry: ConvGeometry
) -> Iterator[tuple[int, int, slice, slice]]:
    """(kernel row, kernel column, rows, columns): the padded input positions that each tap reads."""
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield (
                i,
                j,
                slice(i * dh, i * dh + (out[0] - 1) * sh + 1, sh),
                slice(j * dw, j * dw + (out[1] - 1) * sw + 1, sw),
            )


def conv2d(x: Tensor, w: Tensor, geometry: ConvGeometry, pad_value: Tensor | int) -> Tensor:
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


def conv2d_grad_input(g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry) -> Tensor:
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


def conv2d_grad_weight(
    x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Tensor | int
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
