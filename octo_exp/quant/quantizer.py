"""Ranges from the tensor itself or from a moving average: the quantiser of every scheme that learns no range."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.quant.operand import OperandForm, Quantizer
from octo_exp.quant.qtensor import QTensor
from octo_exp.quant.ranges import Statistics, finite_or_nan, in_backward, scale_zero_point, tensor_range
from octo_exp.quant.rounding import keyed_seed
from octo_exp.quant.straight_through import StraightThrough
from octo_exp.workload import FLOAT_BYTES, Account, bit_bytes

CHOICES = {"rounding": ("nearest", "stochastic"), "range": ("dynamic", "hindsight")}
# More operations for each element where noise is drawn: Philox4x32-10 gives four numbers for ten rounds of six.
DRAW_OPS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandSpec(OperandForm):
    """A range of minimum and maximum.

    range: `dynamic` takes this tensor's own minimum and maximum, `hindsight` the moving average of the steps before
    (one pass over the tensor). momentum: of that average, which is also the stored range that evaluation uses.
    """

    rounding: str
    range: str
    momentum: float

    def __post_init__(self) -> None:
        """Refuse unknown names and values outside their domain."""
        for key, choices in CHOICES.items():
            if getattr(self, key) not in choices:
                raise UserError(f"{key}={getattr(self, key)!r} is unknown; choose one of {', '.join(choices)}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")
        # Not super(): a dataclass with slots is made anew.
        OperandForm.__post_init__(self)
        if self.granularity == "channel" and self.range == "hindsight":
            raise UserError("granularity=channel needs range=dynamic: the moving average is one range a tensor")

    def build(self, **where: Any) -> "RangeQuantizer":
        """Return the quantiser of one operand of one layer; `where`: see `OperandForm.build`."""
        return RangeQuantizer(self, **where)


class RangeQuantizer(Quantizer):
    """Quantises by minimum and maximum.

    Training uses dynamic or hindsight ranges, evaluation the stored ones, so that a prediction does not depend on its
    batch. Only activations (`stored=True`) have a stored range: weights are their own, gradients see no evaluation.
    """

    spec: OperandSpec
    low: Tensor
    high: Tensor

    def __init__(self, spec: OperandSpec, **where: Any) -> None:
        super().__init__(spec, **where)
        self.tracks = self.stored or spec.range == "hindsight"
        for name in ("low", "high", "count"):
            self.register_buffer(name, torch.tensor(0.0), persistent=self.tracks)
        # The moving average that the last pass used: the pass that checkpointing computes again uses it too.
        self._used: tuple[Tensor, Tensor] | None = None

    def forward(self, t: Tensor, numel: int | None = None, *, step: Tensor | None = None) -> QTensor:
        """Quantise t by its range, clipped where a form says so."""
        low, high = self._range(t, step)
        bounds: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.clipper is not None:
            bounds = low, high = self.clipper.bounds(t, low, high, numel)
        scale, zero_point = self.scale_of(low, high)
        seed = None
        if self.spec.rounding == "stochastic" and self.training:
            seed = keyed_seed(self.clock.seed, self.clock.step, self.layer, self.operand)
        values = self._codes(t, scale, zero_point, low=bounds[0], high=bounds[1], seed=seed)
        if self.clipper is not None and self.training:
            self.clipper.learn(t, values, scale, self.q_max)
        return QTensor(values=values, scale=scale, zero_point=zero_point)

    def scale_of(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
        """Range -> (scale float32, zero point int32 or None), of its shape; what another quantiser form may change."""
        return scale_zero_point(low, high, self.spec.bits, symmetric=self.spec.symmetric)

    @property
    def operations(self) -> int:
        """Operations for each element that is quantised, clipping and noise with them."""
        return super().operations + (DRAW_OPS if self.spec.rounding == "stochastic" else 0)

    @property
    def is_repeatable(self) -> bool:
        """Whether no noise is drawn, nor a range clipped."""
        return super().is_repeatable and not (self.spec.rounding == "stochastic" and self.training)

    @property
    def may_clip(self) -> bool:
        """Whether the range in use can be narrower than the tensor: then the straight-through gradient needs a mask."""
        return (self.stored and not self.training) or self.spec.range == "hindsight"

    def straight_through(self, t: Tensor, q: QTensor, channel_dim: int) -> Tensor:
        """t and its quantised form -> t for the GEMM's autograd node, behind the rule by which its gradient passes.

        A weight passes everywhere: what is cut off must find its way back into the range.
        """
        if self.operand != "x" or not (self.may_clip and t.requires_grad and torch.is_grad_enabled()):
            return t
        passed: Tensor = StraightThrough.apply(t, self.inside(t, q), channel_dim)  # type: ignore[no-untyped-call]
        return passed

    def account_gradient(self, account: Account, role: str, shape: tuple[int, ...], *, owed: bool) -> None:
        """A bit an element, and a product with it."""
        if self.operand == "x" and self.may_clip and owed:
            elements, bits = math.prod(shape), bit_bytes(shape)
            account.keep("mask", bits)
            account.vector(role, "elementwise", elements, bits + FLOAT_BYTES * elements, FLOAT_BYTES * elements)

    def inside(self, t: Tensor, q: QTensor) -> Tensor:
        """Bool mask of t's elements within the range that produced q: the gradient passes there."""
        zero = 0 if q.zero_point is None else q.zero_point
        # Half a code of slack: what rounds to an end code without being cut counts as inside.
        low, high = (self.q_min - zero - 0.5) * q.scale, (self.q_max - zero + 0.5) * q.scale
        return (t >= low) & (t <= high)

    def _range(self, t: Tensor, step: Tensor | None) -> tuple[Tensor, Tensor]:
        statistics = Statistics(self.low, self.high, self.count)
        if self.stored and not self.training:
            if not bool(self.count > 0):
                raise self._unseen()
            return self.low, self.high
        low, high = tensor_range(t.detach(), self.channel_dim)
        if not self.tracks or not self.training:
            return low, high
        used = low, high = finite_or_nan(low, high)
        # Gradients (g, g_scaled) have no other place.
        if self.operand in ("x", "w") and in_backward():
            return used if self._used is None else self._used
        if self.spec.range == "hindsight" and bool(self.count > 0):
            # A tensor that is not finite is not made so by clipping: its step, and what is stored behind it, would be.
            used = torch.where(low.isnan(), low, self.low), torch.where(high.isnan(), high, self.high)
        self._used = used if self.spec.range == "hindsight" else None
        statistics.update(low, high, self.spec.momentum, step)
        return used
