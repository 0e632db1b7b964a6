"""What the three GEMMs are given: a layer's codes, and the layer that calls them."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from octo_exp.quant.quantizer import QTensor
from octo_exp.quant.scheme import Scheme

Gemms = TypeVar("Gemms")
# What a backward GEMM multiplies: floats, or codes.
Operand = Tensor | QTensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codes:
    """x and w quantised, None where they stay float; slope: LAC's derivative with respect to sum_k(w), or None."""

    x: QTensor | None
    w: QTensor | None
    slope: Tensor | None


class Layer(Protocol[Gemms]):
    """A layer as its GEMMs see it: both operands of a role are codes where its scheme says int8.

    The scheme refuses such a role without their quantisers, so no step of training asks again.
    """

    op: Gemms
    scheme: Scheme

    def saved_weight(self, w: Tensor, wq: QTensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what grad_input is given of w, and its scale."""

    def saved_input(self, x: Tensor, xq: QTensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what grad_weight is given of x: values, scale and zero point."""
