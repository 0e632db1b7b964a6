"""Arithmetic `float_order`: the original release's, operation by operation in float32, to the bit.

acc = round(conv(round(x) - z_x, w)); t = round((acc + b) * e) + z_y; y = clamp(t, -128, 127)

Rounding is half to even. Whole sums below 2^24 are exact in float32, so their order cannot matter; the order of the
steps after them does. Backward, with h = g * [t inside] * e: grad_x = conv^T(h, w), grad_w = corr(round(x) - z_x, h),
grad_b = sum(h).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from octo_exp.graph.parts import Q_MAX, Q_MIN
from octo_exp.graph.train.constants import ConvConstants, Gradients, Kept, pack, select_channels, unpack


def per_channel(v: Tensor) -> Tensor:
    """[C] -> [C, 1, 1], which broadcasts against images."""
    return v.reshape(-1, 1, 1)


def rescale(acc: Tensor, b: Tensor, c: ConvConstants, *, want_bits: bool) -> tuple[Tensor, Tensor | None]:
    """acc [N, O, H, W] float32, overwritten -> (y, bits): what follows the sums."""
    t = acc.add_(per_channel(b)).mul_(per_channel(c.scale)).round_().add_(c.y_zero)
    bits = pack((t >= Q_MIN) & (t <= Q_MAX)) if want_bits else None
    return t.clamp_(Q_MIN, Q_MAX), bits


def enter(x: Tensor) -> Tensor:
    """The graph's tensor -> what passes between convolutions: the same here, and back."""
    return x


leave = enter


def codes_of(x: Tensor) -> Tensor:
    """Return the int8 codes to be kept of a convolution's input."""
    return x.round().to(torch.int8)


def forward(x: Tensor, w: Tensor, b: Tensor, c: ConvConstants, *, want_bits: bool) -> tuple[Tensor, Tensor | None]:
    """x [N, C, H, W], w [O, C/G, KH, KW], b [O], all float32 -> (y [N, O, OH, OW], bits); x and w are rounded."""
    acc = F.conv2d(x.round().sub_(c.x_zero), w.round(), None, *c.geometry.options).round_()
    return rescale(acc, b, c, want_bits=want_bits)


def backward(g: Tensor, kept: Kept) -> Gradients:
    """g [N, O, OH, OW] -> gradients."""
    c, codes = kept.constants, kept.codes
    h = unpack(kept.bits, g.shape).float().mul_(g).mul_(per_channel(c.scale))
    dx = None if kept.w is None else grad_x(h, kept.w, kept)
    dw = None if codes is None else grad_w(h, codes.float().sub_(c.x_zero), kept)
    return Gradients(x=dx, w=dw, b=h.sum((0, 2, 3)) if kept.wants_bias else None)


def grad_x(h: Tensor, w: Tensor, kept: Kept) -> Tensor:
    """h [N, O, OH, OW] = g * [inside] * e, w [O, C/G, KH, KW] -> gradient of x [N, C, H, W]."""
    dx: Tensor = conv2d_input(kept.x_shape, w, h, *kept.constants.geometry.options)
    return dx


def grad_w(h: Tensor, x: Tensor, kept: Kept) -> Tensor:
    """h as above, x [N, K, H, W] = the kept channels' codes - x_zero -> gradient of their weights."""
    g, groups = kept.constants.geometry, kept.constants.geometry.groups
    if kept.channels is not None and kept.constants.is_depthwise:
        h, groups = select_channels(h, kept.channels), len(kept.channels)
    shape = torch.Size((h.shape[1], x.shape[1] // groups, *kept.kernel))
    dw: Tensor = conv2d_weight(x, shape, h, g.stride, g.padding, g.dilation, groups)
    return dw


def add(
    x1: Tensor, x2: Tensor, scales: tuple[float, ...], zeros: tuple[int, ...], *, want_bits: bool
) -> tuple[Tensor, Tensor | None]:
    """x1, x2 [N, C, H, W] -> (y, bits): see `chains.Add`."""
    (s1, s2, s_y), (z1, z2, z_y) = scales, zeros
    t = (x1 - z1).mul_(s1).add_((x2 - z2).mul_(s2)).div_(s_y).round_().add_(z_y)
    bits = pack((t >= Q_MIN) & (t <= Q_MAX)) if want_bits else None
    return t.clamp_(Q_MIN, Q_MAX), bits


def add_backward(
    g: Tensor, bits: Tensor, scales: tuple[float, ...], want_1: bool, want_2: bool
) -> tuple[Tensor | None, Tensor | None]:
    """g -> gradients of x1 and x2, None for what is not wanted."""
    passed = unpack(bits, g.shape).float().mul_(g)
    s1, s2, s_y = scales
    return passed * s1 / s_y if want_1 else None, passed * s2 / s_y if want_2 else None
