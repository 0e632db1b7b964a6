"""The oracle: every integer operation through float64 library calls, which are exact here; any device, slow.

A float64 holds every integer up to 2^53; a product of int8 codes is at most 2^14, so sums of up to 2^39 products are
exact whatever their order. Nothing of its integer arithmetic is shared with the fast implementations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from octo_exp.kernels.backend import Backend
from octo_exp.kernels.finish import Pad
from octo_exp.kernels.int8 import MAX_K, ConvGeometry, check_conv2d, check_int8


def _padded(x: Tensor, geometry: ConvGeometry, pad_value: Pad) -> Tensor:
    ph, pw = geometry.padding
    return F.pad(x.double(), (pw, pw, ph, ph), value=float(pad_value))


def _integers(sums: Tensor, k: int) -> Tensor:
    """Sums of k products in the type that the split product gives."""
    return sums.round().to(torch.int64).to(torch.int32 if k <= MAX_K else torch.int64)


class Reference(Backend):
    """kernel=reference."""

    multiplier = "float64, exact"

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b."""
        return (a.double() @ b.double()).to(torch.int64)

    def int8_conv2d(self, x: Tensor, w: Tensor, geometry: ConvGeometry, *, pad_value: Pad = 0) -> Tensor:
        """By torch's own convolution."""
        check_conv2d(x, w, geometry)
        padded = _padded(x, geometry, pad_value)
        out = F.conv2d(padded, w.double(), None, geometry.stride, 0, geometry.dilation, geometry.groups)
        return _integers(out, w[0].numel())

    def int8_conv2d_grad_input(self, g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry) -> Tensor:
        """By torch's own gradient."""
        check_int8(g=g, w=w)
        shape = (g.shape[0], w.shape[1] * geometry.groups, *size)
        out = conv2d_input(shape, w.double(), g.double(), *geometry.options)
        return _integers(out, w.shape[0] // geometry.groups * w.shape[2] * w.shape[3])

    def int8_conv2d_grad_weight(
        self, x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, *, pad_value: Pad = 0
    ) -> Tensor:
        """By torch's own gradient, int64."""
        check_int8(x=x, g=g)
        shape = (g.shape[1], x.shape[1] // geometry.groups, *kernel)
        options = (geometry.stride, 0, geometry.dilation, geometry.groups)
        padded = _padded(x, geometry, pad_value)
        out: Tensor = conv2d_weight(padded, shape, g.double(), *options)
        return out.round().to(torch.int64)
