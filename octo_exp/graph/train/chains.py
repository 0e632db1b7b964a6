"""The graph's differentiable operations on whole numbers in float32: chains of steps.

A chain of convolutions, pools and additions is one operation to autograd: between its steps an arithmetic passes what
it likes. Every rounding is straight-through; the clamp passes a gradient where its input was within [-128, 127].
Nothing is computed and nothing kept that is not asked for: bits where a gradient passes at all, a max pool's positions
there as well, int8 codes of the kept channels where a weight is trained, and of the weight only the parameter itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octo_exp.base.errors import UserError
from octo_exp.graph.parts import Q_MAX
from octo_exp.graph.train import cpu_forward, float_order, integer, pool
from octo_exp.graph.train.constants import ConvConstants, Gradients, Kept, select_channels
from octo_exp.graph.train.pool import Pool
from octo_exp.graph.train.trained import Update

MODES = ("float_order", "integer")


class Arithmetic(Protocol):
    """What computes a chain, a module each; see `float_order` for operands and results.

    `enter` and `leave` make what passes between steps of the graph's tensors and these of it again.
    """

    def enter(self, x: Tensor, /) -> Tensor: ...  # noqa: D102
    def leave(self, x: Tensor, /) -> Tensor: ...  # noqa: D102
    def codes_of(self, x: Tensor, /) -> Tensor: ...  # noqa: D102
    def forward(  # noqa: D102
        self, x: Tensor, w: Tensor, b: Tensor, c: ConvConstants, /, *, want_bits: bool
    ) -> tuple[Tensor, Tensor | None]: ...
    def backward(self, g: Tensor, kept: Kept, /) -> Gradients: ...  # noqa: D102
    def add(  # noqa: D102
        self, x1: Tensor, x2: Tensor, scales: tuple[float, ...], zeros: tuple[int, ...], /, *, want_bits: bool
    ) -> tuple[Tensor, Tensor | None]: ...
    def add_backward(  # noqa: D102
        self, g: Tensor, bits: Tensor, scales: tuple[float, ...], want_1: bool, want_2: bool, /
    ) -> tuple[Tensor | None, Tensor | None]: ...


def arithmetic_of(mode: str, device_type: str) -> Arithmetic:
    """A name of MODES -> what computes it there."""
    if mode == "float_order":
        return float_order
    return cpu_forward if device_type == "cpu" else integer


def check_mode(mode: str) -> str:
    """Return the name, or raise UserError where no arithmetic has it."""
    if mode not in MODES:
        raise UserError(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    return mode


def fake_quantize(t: Tensor, channel: int) -> Tensor:
    """Round t to int8 codes and back, symmetric, one scale max|t| / 127 along dimension `channel`."""
    others = [d for d in range(t.dim()) if d != channel]
    scale = t.abs().amax(others, keepdim=True).div_(Q_MAX)
    # A channel of zeros has no scale, and needs none.
    scale = torch.where(scale > 0, scale, 1.0)
    return t.div(scale).round_().clamp_(-Q_MAX, Q_MAX).mul_(scale)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conv:
    """Step: a convolution. weight [O, C/G, KH, KW], rounded when it runs, and bias [O] are float masters."""

    weight: Tensor
    bias: Tensor
    constants: ConvConstants
    update: Update


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Branch:
    """Step: remember what passes here for the next `Swap` or `Add`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Swap:
    """Step: exchange what passes here and what is remembered."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Add:
    """Step: y = clamp(round(((x1 - z1)*s1 + (x2 - z2)*s2) / s_y) + z_y), x1 what is remembered, x2 what passes.

    scales (s1, s2, s_y), zeros (z1, z2, z_y). grad_i = g * [inside] * s_i / s_y.
    """

    scales: tuple[float, ...]
    zeros: tuple[int, ...]


Step = Conv | Pool | Branch | Swap | Add


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _AddMemo:
    scales: tuple[float, ...]
    want_1: bool
    want_2: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ConvMemo:
    constants: ConvConstants
    kept: Tensor | None
    x_shape: torch.Size
    w_shape: torch.Size
    train_weight: bool
    train_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PoolMemo:
    pool: Pool
    x_shape: torch.Size


# What is remembered of a step; what it saves, what it makes, and whether a gradient passes through that.
_Memo = Branch | Swap | _PoolMemo | _AddMemo | _ConvMemo
_Done = tuple[_Memo, tuple[Tensor | None, Tensor | None, Tensor | None], Tensor, bool]


class _Chain(torch.autograd.Function):
    """Steps of one arithmetic, one after another; each remembers what its gradient needs, at most three tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: tuple[Step, ...], mode: str, quantize: bool, *parameters: Tensor) -> Tensor:
        arithmetic = ctx.arithmetic = arithmetic_of(mode, x.device.type)
        ctx.quantize, ctx.memos = quantize, []
        state, passes = arithmetic.enter(x), bool(ctx.needs_input_grad[0])
        operands = zip(parameters, ctx.needs_input_grad[4:], strict=True)
        saved: list[Tensor | None] = []
        remembered: list[tuple[Tensor, bool]] = []
        for step in steps:
            if isinstance(step, Conv):
                done = _conv(arithmetic, step, state, passes, next(operands), next(operands))
            elif isinstance(step, Pool):
                done = _pool(step, state, passes)
            elif isinstance(step, Add):
                done = _add(arithmetic, step, *remembered.pop(), state, passes)
            else:
                now = remembered.pop() if isinstance(step, Swap) else (state, passes)
                remembered.append((state, passes))
                done = step, (None, None, None), *now
            memo, kept, state, passes = done
            ctx.memos.append(memo)
            saved += kept
        ctx.save_for_backward(*saved)
        return arithmetic.leave(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        saved, gradients = ctx.saved_tensors, []
        dx: Tensor | None = g
        branch: Tensor | None = None
        for k in reversed(range(len(ctx.memos))):
            memo, kept = ctx.memos[k], saved[3 * k : 3 * k + 3]
            if isinstance(memo, _ConvMemo):
                # What lies before the first trained tensor has neither bits nor gradients.
                dx, dw, db = (None, None, None) if dx is None else _conv_back(ctx, memo, dx, *kept)
                gradients += [db, dw]
            elif isinstance(memo, Swap):
                dx, branch = branch, dx
            elif isinstance(memo, _PoolMemo):
                dx = None if dx is None else pool.backward(dx, memo.pool, memo.x_shape, kept[0])
            elif isinstance(memo, Branch):
                dx, branch = dx if branch is None else branch if dx is None else branch.add_(dx), None
            elif dx is not None:
                branch, dx = ctx.arithmetic.add_backward(dx, kept[0], memo.scales, memo.want_1, memo.want_2)
        return dx, None, None, None, *reversed(gradients)


def _pool(step: Pool, x: Tensor, passes: bool) -> _Done:
    state, positions = pool.forward(x, step, want_positions=passes)
    return _PoolMemo(pool=step, x_shape=x.shape), (positions, None, None), state, passes


def _add(arithmetic: Arithmetic, step: Add, x1: Tensor, want_1: bool, x2: Tensor, want_2: bool) -> _Done:
    passes = want_1 or want_2
    state, bits = arithmetic.add(x1, x2, step.scales, step.zeros, want_bits=passes)
    memo = _AddMemo(scales=step.scales, want_1=want_1, want_2=want_2)
    return memo, (bits if passes else None, None, None), state, passes


def _conv(
    arithmetic: Arithmetic, step: Conv, x: Tensor, passes: bool, w: tuple[Tensor, bool], b: tuple[Tensor, bool]
) -> _Done:
    """w, b: (tensor, whether it is trained)."""
    (weight, train_weight), (bias, train_bias) = w, b
    kept, codes = step.update.kept, None
    # An update may have been chosen before the net was moved.
    kept = None if kept is None else kept.to(weight.device)
    if train_weight and (kept is None or len(kept)):
        codes = arithmetic.codes_of(x)
        codes = codes if kept is None else select_channels(codes, kept)
    wanted = passes or train_weight or train_bias
    memo = _ConvMemo(
        constants=step.constants,
        kept=kept,
        x_shape=x.shape,
        w_shape=weight.shape,
        train_weight=train_weight,
        train_bias=train_bias,
    )
    state, bits = arithmetic.forward(x, weight, bias, step.constants, want_bits=wanted)
    return memo, (bits if wanted else None, codes, weight if passes else None), state, wanted


def _conv_back(
    ctx: Any, memo: _ConvMemo, g: Tensor, bits: Tensor, codes: Tensor | None, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a convolution's input, weight and bias."""
    kept = Kept(
        constants=memo.constants,
        bits=bits,
        x_shape=memo.x_shape,
        kernel=(memo.w_shape[2], memo.w_shape[3]),
        w=None if weight is None else weight.round(),
        codes=codes,
        channels=memo.kept,
        wants_bias=memo.train_bias,
    )
    gradients: Gradients = ctx.arithmetic.backward(g, kept)
    dx, dw = gradients.x, gradients.w
    if ctx.quantize:
        dx = None if dx is None else fake_quantize(dx, 1)
        dw = None if dw is None else fake_quantize(dw, 0)
    if memo.train_weight and memo.kept is not None:
        share, dw = dw, g.new_zeros(memo.w_shape)
        dw = dw if share is None else dw.index_copy_(0 if memo.constants.is_depthwise else 1, memo.kept, share)
    return dx, dw, gradients.b


def _parameters(convs: Sequence[Conv]) -> list[Tensor]:
    """Weights and biases, detached where they are not trained."""
    parameters = []
    for conv in convs:
        c = conv.constants
        if conv.update.kept is not None and c.geometry.groups > 1 and not c.is_depthwise:
            raise UserError("kept channels need a convolution of one group or a depthwise one; train all its channels")
        parameters.append(conv.weight if conv.update.train_weight else conv.weight.detach())
        parameters.append(conv.bias if conv.update.train_bias else conv.bias.detach())
    return parameters


def run_chain(x: Tensor, steps: Sequence[Step], *, mode: str, quantize_gradient: bool = False) -> Tensor:
    """x [N, C, H, W] whole numbers in float32 -> what the last step gives, of the same kind.

    Only what each `update` trains gets a gradient. quantize_gradient: grad_weight per output channel and grad_input
    per input channel pass as int8 codes times a scale. Raises UserError for kept channels of a grouped convolution.
    """
    parameters = _parameters([step for step in steps if isinstance(step, Conv)])
    if not torch.is_grad_enabled():
        # Else a function is told that gradients are needed, and makes what nobody will use.
        x, parameters = x.detach(), [p.detach() for p in parameters]
    y: Tensor = _Chain.apply(x, tuple(steps), mode, quantize_gradient, *parameters)  # type: ignore[no-untyped-call]
    return y
