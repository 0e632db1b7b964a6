"""The straight-through rule as an autograd node of its own: what the gradient of a quantised operand becomes.

    forward   t -> t, the same memory; the GEMM multiplies the codes of t, and answers with the gradient of Q(t)
    backward  dt = dL/dQ(t) where t lies inside the range that quantised it, else 0

Source: Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013; the zero outside as in
PACT (Choi et al., 2018).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octo_exp.kernels.plain.masks import pack_bits, unpack_bits


class StraightThrough(torch.autograd.Function):
    """t float32, inside (bool, of its shape), the dimension of its channels -> t; a bit an element is kept."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, inside: Tensor, channel_dim: int) -> Tensor:
        """Pass t on, and keep where the gradient passes."""
        ctx.channel_dim, ctx.channels = channel_dim, t.shape[channel_dim]
        ctx.save_for_backward(pack_bits(inside.movedim(channel_dim, -1)))
        return t.view_as(t)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of t: a number that is none stays one."""
        (bits,) = ctx.saved_tensors
        return g * unpack_bits(bits, ctx.channels).movedim(-1, ctx.channel_dim), None, None
