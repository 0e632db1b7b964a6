"""What every quantiser of an operand shares: the form that a config names, and the module that it builds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.kernels import ops
from octo_exp.quant.clipping import ClipForm, Clipper
from octo_exp.quant.qtensor import QTensor
from octo_exp.quant.ranges import code_limits
from octo_exp.quant.rounding import Clock
from octo_exp.workload import QUANTIZE_OPS, Account

GRANULARITIES = ("tensor", "channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandForm(ABC):
    """How one operand (x, w or g) is quantised: what a scheme's `_target_` at quant.x, .w or .g names.

    bits: 2 to 8, stored as int8. symmetric: codes around 0, else with a zero point. granularity: one scale a tensor, or
    one an output channel (w only).
    """

    # The operands that this form serves.
    operands: ClassVar[tuple[str, ...]] = ("x", "w", "g")

    bits: int
    symmetric: bool
    granularity: str

    def __post_init__(self) -> None:
        """Refuse unknown names and values outside their domain."""
        if self.granularity not in GRANULARITIES:
            raise UserError(f"granularity={self.granularity!r} is unknown; choose one of {', '.join(GRANULARITIES)}")
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise UserError(f"bits must be 2 to 8 (codes are stored as int8), got {self.bits!r}")
        if self.granularity == "channel" and not self.symmetric:
            raise UserError("granularity=channel needs symmetric=true: a zero point a channel has no integer GEMM")

    @abstractmethod
    def build(
        self,
        *,
        operand: str,
        layer: str,
        clock: Clock,
        stored: bool,
        clip: ClipForm | None = None,
        impl: str = "reference",
        channels: tuple[int, ...] | None = None,
    ) -> "Quantizer":
        """Return the quantiser of one operand of one layer.

        stored: whether evaluation needs what training has seen (activations). clip: PRC, for g. impl: the kernels'.
        channels: of w, the shape of one number an output channel, which broadcasts against it.
        """


class Quantizer(nn.Module, ABC):
    """float tensor -> QTensor for one operand of one layer; `clip` (PRC) narrows the range first."""

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
    ) -> None:
        super().__init__()
        self.spec, self.operand, self.layer, self.clock, self.stored = spec, operand, layer, clock, stored
        self.impl = impl
        self.channel_dim = 0 if spec.granularity == "channel" else None
        self.scale_shape = channels if channels is not None and spec.granularity == "channel" else ()
        self.q_min, self.q_max = code_limits(spec.bits, symmetric=spec.symmetric)
        self.clipper: Clipper | None = None if clip is None else clip.build()

    @abstractmethod
    def forward(self, t: Tensor, numel: int | None = None, *, step: Tensor | None = None) -> QTensor:
        """Quantise t (float32) to int8 codes; raises UserError where evaluation needs what no training has left.

        numel: the elements that t stands for, where it leaves out zeros (a pooled gradient); t.numel() if None.
        step: a scalar that is finite where the step is, as far as is known; else nothing of t is stored.
        """

    @property
    def operations(self) -> int:
        """Operations for each element that is quantised, clipping with them."""
        return QUANTIZE_OPS + (0 if self.clipper is None else self.clipper.operations)

    def _codes(
        self,
        t: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        *,
        low: Tensor | None = None,
        high: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        zero = torch.zeros((), device=t.device) if zero_point is None else zero_point
        backend = ops.backend(self.impl, t.device.type)
        return backend.quantize(t, scale, zero, q_min=self.q_min, q_max=self.q_max, low=low, high=high, seed=seed)

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
