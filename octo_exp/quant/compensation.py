"""Loss-aware Compensation (LAC): a layer between the integer GEMM and what follows, trained by the task loss.

Two forms, with parameters per output channel or per output element (C, H, W), never per batch:

zero_point  the GEMM of an asymmetric input leaves out its cross term -z_x*sum_k(q_w); the layer learns how much of it
            to give back. With t = s_x*z_x*sum_k(w^) it is out = y_raw - (1 + theta)*t = y - theta*t, where y is the
            exact product: theta = 0 is exact, theta = -1 is the dropped term.
affine      out = y + alpha*mu + offset, with alpha = 1 and mu, offset ~ init_std*N(0, 1) at the start; the loss gains
            decay/2*(|mu|^2 + |offset|^2).
exact       no parameter: the quantisation error dX*W + X*dW + dX*dW, computed in float, is given back whole: the upper
            bound that LAC can reach (an oracle for studies, not for devices).

Both trained forms are constants after training and fold into the bias at export. Source: Octo (USENIX ATC 2021); affine
is its public demo's layer without the batch axis, zero_point is our reading.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError

FORMS = ("zero_point", "affine", "exact")
GRANULARITIES = ("channel", "element")


def zero_point_term(theta: Tensor, cross: Tensor) -> Tensor:
    """theta [C] or [C, H, W], cross = s_x*z_x*sum_k(w^) [C] -> -theta*cross, shaped like theta; differentiable."""
    return -theta * cross.reshape(-1, *[1] * (theta.dim() - 1))


def affine_term(alpha: Tensor, mu: Tensor, offset: Tensor) -> Tensor:
    """Return alpha*mu + offset, each [C] or [C, H, W]."""
    return alpha * mu + offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Compensation:
    """LAC as a config: its form, granularity and hyper-parameters (those of the other form are ignored)."""

    form: str
    granularity: str
    theta_init: float
    init_std: float
    decay: float
    learning_rate: float

    def __post_init__(self) -> None:
        """Refuse unknown names and negative rates."""
        if self.form not in FORMS:
            raise UserError(f"quant.compensation.form={self.form!r} is unknown; choose one of {', '.join(FORMS)}")
        if self.granularity not in GRANULARITIES:
            raise UserError(
                f"quant.compensation.granularity={self.granularity!r} is unknown; choose one of "
                f"{', '.join(GRANULARITIES)}"
            )
        if self.learning_rate < 0 or self.decay < 0 or self.init_std < 0:
            raise UserError("quant.compensation needs learning_rate, decay and init_std >= 0")

    def build(self, shape: tuple[int, ...]) -> "Compensator | None":
        """Return the parameters for outputs of `shape` ((C,) or (C, H, W)); None for the parameter-free oracle."""
        if self.form == "exact":
            return None
        return ZeroPointCompensator(self, shape) if self.form == "zero_point" else AffineCompensator(self, shape)


class Compensator(nn.Module):
    """What a layer adds to its integer product; `uses_zero_point`: whether it is a share of the cross term."""

    uses_zero_point: ClassVar[bool]

    def __init__(self, spec: Compensation) -> None:
        super().__init__()
        self.spec = spec

    def term(self, cross: Tensor | None) -> Tensor:
        """cross = s_x*z_x*sum_k(w^) [C], None unless `uses_zero_point` -> the compensation, [C] or [C, H, W]."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """Return what the loss gains, or None."""
        return None

    def slope(self, zero: Tensor) -> Tensor | None:
        """zero = s_x*z_x, a scalar -> the term's derivative with respect to sum_k(w), of its shape, or None."""
        return None


class ZeroPointCompensator(Compensator):
    """theta of the zero-point form."""

    uses_zero_point = True

    def __init__(self, spec: Compensation, shape: tuple[int, ...]) -> None:
        super().__init__(spec)
        self.theta = nn.Parameter(torch.full(shape, float(spec.theta_init)))

    def term(self, cross: Tensor | None) -> Tensor:
        """Return -theta*cross."""
        if cross is None:
            raise ValueError("the zero-point form needs the cross term")
        return zero_point_term(self.theta, cross)

    def slope(self, zero: Tensor) -> Tensor:
        """Return -theta*zero."""
        return -self.theta.detach() * zero


class AffineCompensator(Compensator):
    """alpha, mu and offset of the affine form."""

    uses_zero_point = False

    def __init__(self, spec: Compensation, shape: tuple[int, ...]) -> None:
        super().__init__(spec)
        self.alpha = nn.Parameter(torch.ones(shape))
        self.mu = nn.Parameter(spec.init_std * torch.randn(shape))
        self.offset = nn.Parameter(spec.init_std * torch.randn(shape))

    def term(self, cross: Tensor | None) -> Tensor:
        """Return alpha*mu + offset."""
        return affine_term(self.alpha, self.mu, self.offset)

    def penalty(self) -> Tensor:
        """Return decay/2*(|mu|^2 + |offset|^2)."""
        return self.spec.decay / 2 * (self.mu.square().sum() + self.offset.square().sum())
