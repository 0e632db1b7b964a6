"""float tensor -> int8 codes: the form that a config names, the quantiser that it builds, and what that makes.

`RangeQuantizer` makes its scale of minimum and maximum: the quantiser of every scheme that learns no range.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.kernels import ops
from octo_exp.kernels.finish import Limits
from octo_exp.quant.clipping import ClipForm, Clipper
from octo_exp.quant.forms import (
    Granularity,
    PerTensor,
    RangeForm,
    Rounding,
    Statistics,
    code_limits,
    finite_or_nan,
    form_of,
    in_backward,
    scale_zero_point,
)
from octo_exp.quant.rounding import Clock
from octo_exp.quant.straight_through import StraightThrough
from octo_exp.workload import FLOAT_BYTES, QUANTIZE_OPS, Account, bit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class QTensor:
    """x ~ (values - zero_point) * scale.

    Invariants: `values` is int8; `scale` is float32 and positive, a scalar, or of as many dimensions as `values` and
    broadcastable against it; `zero_point` is an int32 scalar within the code range, or None for 0.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Return (values - zero_point) * scale, float32."""
        zero = torch.zeros((), device=self.values.device) if self.zero_point is None else self.zero_point
        return ops.dequantize(self.values, self.scale, zero)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandForm(ABC):
    """How one operand (x, w or g) is quantised: what a scheme's `_target_` at quant.x, .w or .g names.

    bits: 2 to 8, stored as int8. symmetric: codes around 0, else with a zero point, which has one scale a tensor.
    granularity: which elements share a scale; a form, or its plain name.
    """

    # The operands that this form serves, those of one role alone (`g_weight`) by their own names.
    operands: ClassVar[tuple[str, ...]] = ("x", "w", "g", "x_weight", "w_input", "g_weight")

    bits: int
    symmetric: bool
    granularity: Granularity

    def __post_init__(self) -> None:
        """Refuse unknown names and values outside their domain."""
        granularity = form_of("granularity", Granularity, self.granularity)
        object.__setattr__(self, "granularity", granularity)
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise UserError(f"bits must be 2 to 8 (codes are stored as int8), got {self.bits!r}")
        if not self.symmetric and not isinstance(granularity, PerTensor):
            name, each = granularity.name, granularity.each
            raise UserError(f"granularity={name} needs symmetric=true: a zero point {each} has no integer GEMM")

    @abstractmethod
    def build(self, **where: Any) -> "Quantizer":
        """Return the quantiser of one operand of one layer; `where`: see `Quantizer`."""


class Quantizer(nn.Module, ABC):
    """float tensor -> QTensor for one operand of one layer.

    stored: whether evaluation needs what training has seen (activations). clip: PRC, for g; narrows the range first.
    impl: the kernels'. channels: of w, the shape of one number an output channel, which broadcasts against it.
    channel_dim: where the channels of a tensor lie.
    """

    # Whether a training step has left what evaluation needs; only where something is stored.
    count: Tensor

    def __init__(
        self,
        spec: OperandForm,
        *,
        operand: str,
        layer: str,
        clock: Clock,
        stored: bool,
        clip: ClipForm | None = None,
        impl: str = "reference",
        channels: tuple[int, ...] | None = None,
        channel_dim: int = 0,
    ) -> None:
        super().__init__()
        self.spec, self.operand, self.layer, self.clock, self.impl = spec, operand, layer, clock, impl
        # A scale of a sample's own does not depend on its batch.
        self.stored = stored and isinstance(spec.granularity, PerTensor)
        self.channel_dim, self.channels = channel_dim, channels
        self.q_min, self.q_max = code_limits(spec.bits, symmetric=spec.symmetric)
        self.clipper: Clipper | None = None if clip is None else clip.build()

    @abstractmethod
    def forward(self, t: Tensor, numel: int | None = None, *, step: Tensor | None = None) -> QTensor:
        """Quantise t (float32) to int8 codes; raises UserError where evaluation needs what no training has left.

        numel: the elements that t stands for, where it leaves out zeros (a pooled gradient); t.numel() if None.
        step: finite where the step is, as far as is known; else nothing of t is stored.
        """

    @property
    def operations(self) -> int:
        """Operations for each element that is quantised, clipping with them."""
        return QUANTIZE_OPS + (0 if self.clipper is None else self.clipper.operations)

    def scale_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of the scales of a tensor, 0 for a single one."""
        return FLOAT_BYTES * self.spec.granularity.scales(shape, self.channel_dim)

    def _codes(self, t: Tensor, scale: Tensor, zero_point: Tensor | None, **bounds: Tensor | None) -> Tensor:
        zero = torch.zeros((), device=t.device) if zero_point is None else zero_point
        return self._round(t, scale=scale, zero_point=zero, q_min=self.q_min, q_max=self.q_max, **bounds)

    def _round(self, t: Tensor, *, scale: Tensor, zero_point: Tensor, **limits: Any) -> Tensor:
        return ops.backend(self.impl, t.device.type).quantize(t, scale, zero_point, Limits(**limits))

    @property
    def is_repeatable(self) -> bool:
        """Whether `again` gives the same codes: the range is that of the scale alone, and no noise is drawn."""
        return self.clipper is None

    def again(self, t: Tensor, scale: Tensor) -> QTensor:
        """Quantise t symmetrically with a scale of before; codes (int8) are taken as they are."""
        values = t if t.dtype == torch.int8 else self._codes(t, scale, None)
        return QTensor(values=values, scale=scale)

    @property
    def may_clip(self) -> bool:
        """Whether the range in use can be narrower than the tensor: then the straight-through gradient needs a mask."""
        return False

    def straight_through(self, t: Tensor, q: QTensor, channel_dim: int) -> Tensor:
        """t and its quantised form -> t for the GEMM's autograd node, behind the rule by which its gradient passes."""
        return t

    @property
    def learns(self) -> bool:
        """Whether it has parameters of its own that train."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def account_gradient(self, account: Account, role: str, shape: tuple[int, ...], *, owed: bool) -> None:
        """State what `straight_through` of a tensor of this shape keeps and does; `owed`: whether its gradient is."""

    def _unseen(self) -> UserError:
        return UserError(
            f"layer {self.layer!r} has no stored range for operand {self.operand}: train it for at least one step, or "
            "load a checkpoint of a quantised run"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandSpec(OperandForm):
    """A range of minimum and maximum.

    rounding, range: forms, or their plain names. momentum: of the moving average of ranges, which is the operand's own:
    it is what evaluation of an activation uses whatever the form, and what `Hindsight` uses in training.
    """

    rounding: Rounding
    range: RangeForm
    momentum: float

    def __post_init__(self) -> None:
        """Refuse unknown names and values outside their domain."""
        object.__setattr__(self, "rounding", form_of("rounding", Rounding, self.rounding))
        object.__setattr__(self, "range", form_of("range", RangeForm, self.range))
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")
        # Not super(): a dataclass with slots is made anew.
        OperandForm.__post_init__(self)
        if self.range.averages and not isinstance(self.granularity, PerTensor):
            raise UserError(
                f"granularity={self.granularity.name} needs range=dynamic: the moving average is one range a tensor"
            )

    def build(self, **where: Any) -> "RangeQuantizer":
        """Return the quantiser of one operand of one layer; `where`: see `Quantizer`."""
        return RangeQuantizer(self, **where)


class RangeQuantizer(Quantizer):
    """Quantises by minimum and maximum.

    Training uses the ranges that the form chooses, evaluation the stored ones, so that a prediction does not depend on
    its batch. Only activations with one scale a tensor have a stored range: weights, and samples with scales of their
    own, are their own, and gradients see no evaluation.
    """

    spec: OperandSpec
    low: Tensor
    high: Tensor

    def __init__(self, spec: OperandSpec, **where: Any) -> None:
        super().__init__(spec, **where)
        self.tracks = self.stored or spec.range.averages
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
        values = self._codes(t, scale, zero_point, low=bounds[0], high=bounds[1])
        if self.clipper is not None and self.training:
            self.clipper.learn(t, values, scale, self.q_max)
        return QTensor(values=values, scale=scale, zero_point=zero_point)

    def scale_of(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor | None]:
        """Range -> (scale float32, zero point int32 or None), of its shape; what another quantiser form may change."""
        return scale_zero_point(low, high, self.spec.bits, symmetric=self.spec.symmetric)

    def _round(self, t: Tensor, **limits: Any) -> Tensor:
        key = (self.clock.seed, self.clock.step, self.layer, self.operand) if self.training else None
        return self.spec.rounding.codes(super()._round, t, key, limits)

    @property
    def operations(self) -> int:
        """Operations for each element that is quantised, clipping and the forms' own with them."""
        return super().operations + self.spec.range.operations + self.spec.rounding.operations

    @property
    def is_repeatable(self) -> bool:
        """Whether no noise is drawn, nor a range clipped."""
        return super().is_repeatable and not (self.spec.rounding.draws and self.training)

    @property
    def may_clip(self) -> bool:
        """Whether the range in use can be narrower than the tensor: then the straight-through gradient needs a mask."""
        return (self.stored and not self.training) or self.spec.range.narrows

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
        if self.stored and not self.training:
            if not bool(self.count > 0):
                raise self._unseen()
            return self.low, self.high
        form = self.spec.range
        used = low, high = form.measure(t.detach(), self.spec.granularity.over(t.dim(), self.channel_dim))
        if not self.tracks or not self.training:
            return used
        used = low, high = finite_or_nan(low, high)
        # What is quantised in a backward pass alone (g, g_scaled, w_input) has no other place.
        if self.operand in ("x", "w", "x_weight") and in_backward():
            return used if self._used is None else self._used
        if form.averages and bool(self.count > 0):
            used = form.choose(used, (self.low, self.high))
        self._used = used if form.averages else None
        Statistics(self.low, self.high, self.count).update(low, high, self.spec.momentum, step)
        return used
