"""Arithmetic `integer`: int8 codes, int32 accumulators on the project's kernels; what follows them is `float_order`'s.

The sums are exact whatever their size, so where |sum| < 2^24 the outputs are `float_order`'s bits. Gradients are
float32, summed in another order. What passes between convolutions are int8 codes. These are the plain forms, for any
device; on a CPU compiled loops run (`cpu_forward`, `cpu_backward`).
"""

import torch
from torch import Tensor

from octo_exp.graph.train import float_order
from octo_exp.graph.train.accumulators import accumulate
from octo_exp.graph.train.constants import ConvConstants
from octo_exp.graph.train.float_order import add_backward, backward

__all__ = ["add", "add_backward", "backward", "codes_of", "enter", "forward", "leave"]

# The graph's tensor, float32 -> int8 codes.
enter = float_order.codes_of


def leave(codes: Tensor) -> Tensor:
    """int8 codes -> the graph's tensor, float32."""
    return codes.float()


def codes_of(codes: Tensor) -> Tensor:
    """Return the int8 codes to be kept of a convolution's input: they are what passes."""
    return codes


def forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, *, want_bits: bool) -> tuple[Tensor, Tensor | None]:
    """codes [N, C, H, W] int8, w [O, C/G, KH, KW], rounded here, b [O] float32 -> (codes of the output, bits)."""
    y, bits = float_order.rescale(accumulate(codes, w.round(), c).float(), b, c, want_bits=want_bits)
    return y.to(torch.int8), bits


def add(
    x1: Tensor, x2: Tensor, scales: tuple[float, ...], zeros: tuple[int, ...], *, want_bits: bool
) -> tuple[Tensor, Tensor | None]:
    """x1, x2 [N, C, H, W] int8 codes -> (codes of the sum, bits): see `chains.Add`."""
    y, bits = float_order.add(x1.float(), x2.float(), scales, zeros, want_bits=want_bits)
    return y.to(torch.int8), bits
