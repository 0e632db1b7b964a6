"""Loss-aware Compensation (LAC): a layer between the integer GEMM and what follows, trained by the task loss.

Forms, with parameters per output channel or per output element (C, H, W), never per batch:

ZeroPoint   the GEMM of an asymmetric input leaves out its cross term -z_x*sum_k(q_w); the layer learns how much of it
            to give back. With t = s_x*z_x*sum_k(w^) it is out = y_raw - (1 + theta)*t = y - theta*t, where y is the
            exact product: theta = 0 is exact, theta = -1 is the dropped term.
Affine      out = y + alpha*mu + offset, with alpha = 1 and mu, offset ~ init_std*N(0, 1) at the start; the loss gains
            decay/2*(|mu|^2 + |offset|^2).
Exact       no parameter: the quantisation error dX*W + X*dW + dX*dW, computed in float, is given back whole: the upper
            bound that LAC can reach (an oracle for studies, not for devices).

Both trained forms are constants after training and fold into the bias at export. Source: Octo (USENIX ATC 2021);
`Affine` is its public demo's layer without the batch axis, `ZeroPoint` is our reading. A form of your own is a frozen
dataclass with `build`, and a yaml in conf/quant/compensation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError

GRANULARITIES = ("channel", "element")


def zero_point_term(theta: Tensor, cross: Tensor) -> Tensor:
    """theta [C] or [C, H, W], cross = s_x*z_x*sum_k(w^) [C] -> -theta*cross, shaped like theta; differentiable."""
    return -theta * cross.reshape(-1, *[1] * (theta.dim() - 1))


def affine_term(alpha: Tensor, mu: Tensor, offset: Tensor) -> Tensor:
    """Return alpha*mu + offset, each [C] or [C, H, W]."""
    return alpha * mu + offset


class Compensation(ABC):
    """What `quant/compensation=` names: a form of LAC, a frozen dataclass, its fields the form's settings."""

    __slots__ = ()
    # Whether it compensates the zero point of x, and whether the exact error is given back instead of a learned term.
    uses_zero_point: ClassVar[bool] = False
    gives_error_back: ClassVar[bool] = False

    @property
    def by_element(self) -> bool:
        """Whether there are parameters for each output element, so that the output's shape must be known."""
        return False

    @abstractmethod
    def build(self, shape: tuple[int, ...]) -> "Compensator | None":
        """Return the parameters for outputs of `shape` ((C,) or (C, H, W)); None where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedForm(Compensation):
    """What forms with parameters share.

    granularity: parameters per output `channel` or `element`. learning_rate: theirs.
    """

    granularity: str
    learning_rate: float

    def __post_init__(self) -> None:
        """Refuse unknown names and negative rates."""
        if self.granularity not in GRANULARITIES:
            raise UserError(
                f"quant.compensation.granularity={self.granularity!r} is unknown; choose one of "
                f"{', '.join(GRANULARITIES)}"
            )
        if not self.learning_rate >= 0:
            raise UserError(f"quant.compensation.learning_rate must be 0 or more, got {self.learning_rate}")

    @property
    def by_element(self) -> bool:
        """Whether granularity is element."""
        return self.granularity == "element"


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroPoint(LearnedForm):
    """-theta*s_x*z_x*sum_k(w^); theta_init: 0 starts exact, -1 with the dropped term."""

    uses_zero_point: ClassVar[bool] = True

    theta_init: float

    def build(self, shape: tuple[int, ...]) -> "ZeroPointCompensator":
        """Return theta."""
        return ZeroPointCompensator(self, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine(LearnedForm):
    """alpha*mu + offset; init_std: of mu and offset at the start. decay: of what the loss gains."""

    init_std: float
    decay: float

    def __post_init__(self) -> None:
        """Refuse negative values."""
        LearnedForm.__post_init__(self)
        if not (self.decay >= 0 and self.init_std >= 0):
            raise UserError("quant.compensation needs decay and init_std of 0 or more")

    def build(self, shape: tuple[int, ...]) -> "AffineCompensator":
        """Return alpha, mu and offset."""
        return AffineCompensator(self, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact(Compensation):
    """The exact error, given back in float: the oracle."""

    gives_error_back: ClassVar[bool] = True

    def build(self, shape: tuple[int, ...]) -> None:
        """Return None: nothing is learned."""


class Compensator(nn.Module):
    """What a layer adds to its integer product; `uses_zero_point`: whether it is a share of the cross term."""

    uses_zero_point: ClassVar[bool]

    def __init__(self, spec: LearnedForm) -> None:
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

    def __init__(self, spec: ZeroPoint, shape: tuple[int, ...]) -> None:
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

    spec: Affine

    def __init__(self, spec: Affine, shape: tuple[int, ...]) -> None:
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
