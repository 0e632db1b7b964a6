"""The oracle: every integer operation through float64 library calls, which are exact here; any device, slow.

A float64 holds every integer up to 2^53; a product of int8 codes is at most 2^14, so sums of up to 2^39 products are
exact whatever their order. Nothing here is shared with the fast implementations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from octo_exp.kernels.geometry import ConvGeometry


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """[M, K] int8, [K, N] int8 -> [M, N] int64."""
    return (a.double() @ b.double()).to(torch.int64)


def _padded(x: Tensor, geometry: ConvGeometry, pad_value: Tensor | int) -> Tensor:
    ph, pw = geometry.padding
    return F.pad(x.double(), (pw, pw, ph, ph), value=float(pad_value))


def conv2d(x: Tensor, w: Tensor, geometry: ConvGeometry, pad_value: Tensor | int) -> Tensor:
    """x [N, C, H, W], w [O, C/G, KH, KW] int8 -> [N, O, OH, OW] int64."""
    out = F.conv2d(
        _padded(x, geometry, pad_value), w.double(), None, geometry.stride, 0, geometry.dilation, geometry.groups
    )
    return out.round().to(torch.int64)


def conv2d_grad_input(g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry) -> Tensor:
    """g [N, O, OH, OW], w [O, C/G, KH, KW] int8 -> [N, C, H, W] int64."""
    shape = (g.shape[0], w.shape[1] * geometry.groups, *size)
    out = conv2d_input(
        shape, w.double(), g.double(), geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )
    return out.round().to(torch.int64)


def conv2d_grad_weight(
    x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Tensor | int
) -> Tensor:
    """x [N, C, H, W], g [N, O, OH, OW] int8 -> [O, C/G, KH, KW] int64."""
    shape = (g.shape[1], x.shape[1] // geometry.groups, *kernel)
    out = conv2d_weight(
        _padded(x, geometry, pad_value),
        shape,
        g.double(),
        geometry.stride,
        0,
        geometry.dilation,
        geometry.groups,
    )
    return out.round().to(torch.int64)
