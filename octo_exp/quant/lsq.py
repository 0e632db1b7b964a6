"""LSQ: the step between codes is a parameter of the network, trained by the task loss.

    Q(t) = s * clip(round(t / s), -Q_N, Q_P),   v = t / s
    dQ/dt = 1 where -Q_N <= v <= Q_P, else 0
    dQ/ds = round(v) - v there, -Q_N below, Q_P above; times 1 / sqrt(numel * Q_P)
    s_0 = 2 * mean|t| / sqrt(Q_P), of the first batch

numel counts the batch of an activation. Signed codes are -Q_P to Q_P (symmetric=true); unsigned ones 0 to 2^bits - 1
(symmetric=false, activations behind a ReLU), kept in int8 with the zero point -2^(bits-1).
Source: Esser et al., "Learned step size quantization", ICLR 2020, in the form of the public code zhutmost/lsq-net;
there the backward pass is float, on the operands as their codes stand for them: grad_input and grad_weight `fake` here.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from octo_exp.base.errors import UserError
from octo_exp.quant.forms import TINY, PerChannel, PerTensor
from octo_exp.quant.quantizer import OperandForm, QTensor, Quantizer
from octo_exp.workload import FLOAT_BYTES, Account

# For each element: scale, round, clamp.
_FORWARD_OPS = 3
# Divide, clamp, compare, round, subtract, choose twice, multiply, sum.
_BACKWARD_OPS = 9


class LearnedStep(torch.autograd.Function):
    """t, step s (a scalar, or one a channel that broadcasts against t), v's limits, the gradient's factor -> t.

    The same memory goes on: the GEMM multiplies the codes of t, and answers with the gradient of Q(t).
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, step: Tensor, low: int, high: int, factor: float) -> Tensor:
        """Pass t on."""
        ctx.low, ctx.high, ctx.factor = low, high, factor
        ctx.save_for_backward(t, step)
        return t.view_as(t)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Return the gradients of t and of s; equations in the module's docstring."""
        t, step = ctx.saved_tensors
        v = t / step
        cut = v.clamp(ctx.low, ctx.high)
        inside = cut == v
        slope = torch.where(inside, v.round() - v, cut)
        d_step = (g * slope).sum_to_size(step.shape) * ctx.factor if ctx.needs_input_grad[1] else None
        return torch.where(inside, g, 0.0), d_step, None, None, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lsq(OperandForm):
    """A learned step. A gradient has none: it sees no loss."""

    operands: ClassVar[tuple[str, ...]] = ("x", "w")

    def __post_init__(self) -> None:
        """Refuse steps that a batch would have to number."""
        # Not super(): a dataclass with slots is made anew.
        OperandForm.__post_init__(self)
        if not isinstance(self.granularity, PerTensor | PerChannel):
            raise UserError(f"granularity={self.granularity.name}: a learned step is one a tensor, or one a channel")

    def build(self, **where: Any) -> "LsqQuantizer":
        """Return the quantiser of one operand of one layer; `where`: see `Quantizer`."""
        return LsqQuantizer(self, **where)


class LsqQuantizer(Quantizer):
    """Quantises by `step`, whose first value is that of the first batch in training; then it is the optimizer's.

    step: [] or, one a channel, what broadcasts against the weight; 0 until it is set.
    """

    def __init__(self, spec: Lsq, **where: Any) -> None:
        super().__init__(spec, **where)
        self.register_buffer("count", torch.tensor(0.0))
        shape = self.channels if isinstance(spec.granularity, PerChannel) and self.channels is not None else ()
        self.step = nn.Parameter(torch.zeros(shape))
        # Of v: codes without their zero point.
        self.zero = 0 if spec.symmetric else self.q_min
        self.low, self.high = self.q_min - self.zero, self.q_max - self.zero

    def forward(self, t: Tensor, numel: int | None = None, *, step: Tensor | None = None) -> QTensor:
        """Quantise t by the step."""
        scale = self._first(t, step) if not bool(self.count > 0) else self.step.detach().clamp(min=TINY)
        zero_point = None
        if not self.spec.symmetric:
            zero_point = torch.tensor(self.zero, dtype=torch.int32, device=t.device)
        return QTensor(values=self._codes(t, scale, zero_point), scale=scale, zero_point=zero_point)

    @torch.no_grad()
    def _first(self, t: Tensor, step: Tensor | None) -> Tensor:
        """Return s_0 of t; training keeps it, but of a step that is not finite."""
        if self.stored and not self.training:
            raise self._unseen()
        over = self.spec.granularity.over(t.dim(), self.channel_dim)
        mean = t.abs().mean() if over is None else t.abs().mean(over, keepdim=True)
        first = (2 * mean / math.sqrt(self.high)).clamp(min=TINY)
        finite = torch.isfinite(first).all() and (step is None or bool(torch.isfinite(step).all()))
        if self.training and finite:
            self.step.copy_(first)
            self.count.fill_(1.0)
        return first

    @property
    def operations(self) -> int:
        """Operations for each element that is quantised: there is no range to find."""
        return _FORWARD_OPS

    @property
    def may_clip(self) -> bool:
        """Always: codes end at their limits, whatever the tensor."""
        return True

    def account_gradient(self, account: Account, role: str, shape: tuple[int, ...], *, owed: bool) -> None:
        """The tensor itself is kept with its steps, and read beside its gradient; a weight is there anyway."""
        if not (owed or self.learns):
            return
        elements = math.prod(shape)
        account.keep("activation", FLOAT_BYTES * self.step.numel())
        if self.operand == "x" and account.x_bits == 32:
            account.keep_input()
        elif self.operand == "x":
            account.keep("activation", FLOAT_BYTES * elements)
        account.vector(
            role, "elementwise", _BACKWARD_OPS * elements, 2 * FLOAT_BYTES * elements, FLOAT_BYTES * elements
        )

    def straight_through(self, t: Tensor, q: QTensor, channel_dim: int) -> Tensor:
        """Let the gradient of Q(t) reach t and the step."""
        if not (torch.is_grad_enabled() and (t.requires_grad or self.step.requires_grad)):
            return t
        factor = 1 / math.sqrt(t.numel() * self.high)
        # The step as it was used: the parameter's own value may be below what a scale can be.
        step = self.step + (q.scale - self.step).detach()
        passed: Tensor = LearnedStep.apply(t, step, self.low, self.high, factor)  # type: ignore[no-untyped-call]
        return passed
