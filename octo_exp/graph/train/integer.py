"""Arithmetic `integer`: int8 codes, int32 accumulators on the project's kernels; what follows them is `float_order`'s.

The sums are exact whatever their size, so where |sum| < 2^24 the outputs are `float_order`'s bits. Gradients are
float32, summed in another order. What passes between convolutions are int8 codes. On a CPU compiled loops run (`cpu`),
on other devices the plain forms here.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from octo_exp.graph.train import cpu_forward, float_order
from octo_exp.graph.train.accumulators import accumulate
from octo_exp.graph.train.constants import ConvConstants, Gradients


def plain_forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, *, want_bits: bool) -> tuple[Tensor, Any]:
    """See `forward`; any device."""
    y, bits = float_order.rescale(accumulate(codes, w.round(), c).float(), b, c, want_bits=want_bits)
    return y.to(torch.int8), bits


def plain_add(
    x1: Tensor, x2: Tensor, scales: tuple[float, ...], zeros: tuple[int, ...], *, want_bits: bool
) -> tuple[Tensor, Any]:
    """See `add`; any device."""
    y, bits = float_order.add(x1.float(), x2.float(), scales, zeros, want_bits=want_bits)
    return y.to(torch.int8), bits


PLAIN = SimpleNamespace(
    enter=float_order.codes_of,
    leave=Tensor.float,
    forward=plain_forward,
    backward=float_order.backward,
    add=plain_add,
    add_backward=float_order.add_backward,
)


def _forms(t: Tensor) -> Any:
    return cpu_forward if t.device.type == "cpu" else PLAIN


def enter(x: Tensor) -> Tensor:
    """The graph's tensor, float32 -> int8 codes."""
    return _forms(x).enter(x)


def leave(codes: Tensor) -> Tensor:
    """int8 codes -> the graph's tensor, float32."""
    return _forms(codes).leave(codes)


def codes_of(codes: Tensor) -> Tensor:
    """Return the int8 codes to be kept of a convolution's input: they are what passes."""
    return codes


def forward(codes: Tensor, w: Tensor, b: Tensor, c: ConvConstants, *, want_bits: bool) -> tuple[Tensor, Tensor | None]:
    """codes [N, C, H, W] int8, w [O, C/G, KH, KW], rounded here, b [O] float32 -> (codes of the output, bits)."""
    return _forms(codes).forward(codes, w, b, c, want_bits=want_bits)


def backward(g: Tensor, bits: Tensor, c: ConvConstants, **options: Any) -> Gradients:
    """See `float_order.backward`."""
    return _forms(g).backward(g, bits, c, **options)


def add(
    x1: Tensor, x2: Tensor, scales: tuple[float, ...], zeros: tuple[int, ...], *, want_bits: bool
) -> tuple[Tensor, Tensor | None]:
    """x1, x2 [N, C, H, W] int8 codes -> (codes of the sum, bits): see `ops.Add`."""
    return _forms(x1).add(x1, x2, scales, zeros, want_bits=want_bits)


def add_backward(
    g: Tensor, bits: Tensor, scales: tuple[float, ...], want_1: bool, want_2: bool
) -> tuple[Tensor | None, Tensor | None]:
    """g -> gradients of x1 and x2, None for what is not wanted."""
    return _forms(g).add_backward(g, bits, scales, want_1, want_2)
