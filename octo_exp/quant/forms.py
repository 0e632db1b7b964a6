"""The parts of a quantiser: which elements share a scale, of what range it is made, how a value is rounded.

Symmetric: s = max(|low|, |high|) / (2^(b-1) - 1), codes in [-(2^(b-1) - 1), 2^(b-1) - 1], zero point 0.
Asymmetric: the range is first extended to contain 0; s = (high - low) / (2^b - 1), z = round(q_min - low / s), codes in
[-2^(b-1), 2^(b-1) - 1]; real 0 is then an integer, so padding with z is exact.

A form is a frozen dataclass: its parameters are its fields, its work for the account `operations`. `_target_` names it;
a form without parameters that is in `NAMED` has a plain name too. One of your own is such a class in a file of its own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.kernels.ops import dense_flat
from octo_exp.quant.rounding import keyed_seed

# The smallest normal float32: an all-zero tensor gets it as its scale, so nothing divides by 0.
TINY = float(torch.finfo(torch.float32).tiny)
Range = tuple[Tensor, Tensor]
Kernel = Callable[..., Tensor]
Key = tuple[int | str, ...] | None


def in_backward() -> bool:
    """Whether a backward pass is running: what is computed forward in it is computed again, by checkpointing."""
    running: int = torch._C._current_graph_task_id()
    return running != -1


def code_limits(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """(q_min, q_max) of a code of 2 to 8 bits."""
    top = 2 ** (bits - 1) - 1
    return (-top, top) if symmetric else (-top - 1, top)


def tensor_range(t: Tensor, over: tuple[int, ...] | None = None) -> Range:
    """(min, max) of t: scalars, or over some of its dimensions, which are kept so that they broadcast against t."""
    if over is None:
        # In the order of memory: aminmax of a channels-last tensor would copy it first.
        flat = dense_flat(t)
        low, high = torch.aminmax(t if flat is None else flat)
        return low, high
    # torch takes no dimensions for all of them.
    return (t.amin(over, keepdim=True), t.amax(over, keepdim=True)) if over else (t, t)


def finite_or_nan(low: Tensor, high: Tensor) -> Range:
    """A range (low, high), as NaN where either end is not finite: its tensor's codes then mean nothing anywhere.

    With a scale of infinity some products would be infinite, and ReLU would make finite zeros of them.
    """
    finite = torch.isfinite(low) & torch.isfinite(high)
    return torch.where(finite, low, math.nan), torch.where(finite, high, math.nan)


def scale_zero_point(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Range -> (scale float32, zero point int32 or None); equations in the module's docstring."""
    q_min, q_max = code_limits(bits, symmetric=symmetric)
    if symmetric:
        return (torch.maximum(low.abs(), high.abs()).float() / q_max).clamp(min=TINY), None
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    # Divided first: the difference of two large values could be infinite.
    scale = (high / (q_max - q_min) - low / (q_max - q_min)).clamp(min=TINY)
    zero_point = (q_min - low / scale).round().clamp(q_min, q_max).nan_to_num(0.0)
    return scale, zero_point.to(torch.int32)


@dataclass(slots=True)
class Statistics:
    """Exponential moving average of a range: (low, high) after `count` observations; three scalar buffers."""

    low: Tensor
    high: Tensor
    count: Tensor

    def update(self, low: Tensor, high: Tensor, momentum: float, step: Tensor | None = None) -> None:
        """r <- momentum * r + (1 - momentum) * r_t; the first observation is taken whole, none that is not finite.

        step: a scalar of the same step; where it is not finite, the observation counts as such.
        """
        keep = torch.where(self.count > 0, momentum, 0.0)
        new_low, new_high = (keep * r + (1 - keep) * r_t for r, r_t in ((self.low, low), (self.high, high)))
        taken = torch.isfinite(new_low) & torch.isfinite(new_high)
        taken = taken if step is None else taken & torch.isfinite(step).all()
        self.low.copy_(torch.where(taken, new_low, self.low))
        self.high.copy_(torch.where(taken, new_high, self.high))
        self.count.add_(taken)


@dataclass(frozen=True, slots=True)
class Granularity:
    """Which elements share a scale: those that differ in no dimension with scales of its own.

    A scale leaves an integer GEMM's sum where that does not run over its dimension: `leaves` lists (role, operand).
    """

    name: ClassVar[str]
    each: ClassVar[str]
    operands: ClassVar[tuple[str, ...]]
    leaves: ClassVar[frozenset[tuple[str, str]]]
    # Whether a convolution's codes, which are made before im2col, can have it.
    in_convolutions: ClassVar[bool] = True

    def own(self, dims: int, channel_dim: int) -> set[int]:
        """Return the dimensions with scales of their own, of a tensor of `dims` whose channels lie in `channel_dim`."""
        raise NotImplementedError

    def over(self, dims: int, channel_dim: int) -> tuple[int, ...] | None:
        """Return the dimensions that share a scale; None: all, and the scale is a scalar."""
        own = self.own(dims, channel_dim)
        return tuple(d for d in range(dims) if d not in own)

    def scales(self, shape: tuple[int, ...], channel_dim: int) -> int:
        """Return how many scales a tensor has beside a single one."""
        return math.prod(shape[d] for d in self.own(len(shape), channel_dim))


@dataclass(frozen=True, slots=True)
class PerTensor(Granularity):
    """One scale a tensor: every GEMM's result is multiplied by it."""

    name, each, operands = "tensor", "a tensor", ("x", "w", "g")
    leaves = frozenset((role, o) for role in ("output", "grad_input", "grad_weight") for o in ("x", "w", "g"))

    def over(self, dims: int, channel_dim: int) -> None:
        """Return None: all dimensions share it."""

    def scales(self, shape: tuple[int, ...], channel_dim: int) -> int:
        """Return 0: a single number."""
        return 0


@dataclass(frozen=True, slots=True)
class PerChannel(Granularity):
    """One an output channel of w or g, or an input channel of x: a row or a column of the product.

    grad_input sums over w's: there s_w[c] is multiplied into g before that is quantised.
    """

    name, each, operands = "channel", "a channel", ("x", "w", "g")
    leaves = frozenset({("output", "w"), ("grad_input", "w"), ("grad_weight", "g"), ("grad_weight", "x")})

    def own(self, dims: int, channel_dim: int) -> set[int]:
        """Return that of the channels."""
        return {channel_dim % dims}


@dataclass(frozen=True, slots=True)
class PerInputChannel(Granularity):
    """One an input channel of w, of its group where there are groups: a column of grad_input."""

    name, each, operands = "input_channel", "an input channel", ("w",)
    leaves = frozenset({("grad_input", "w")})

    def own(self, dims: int, channel_dim: int) -> set[int]:
        """Return that of the input channels."""
        return {1}


@dataclass(frozen=True, slots=True)
class PerSample(Granularity):
    """One a sample of x or g: rows of output and grad_input."""

    name, each, operands = "sample", "a sample", ("x", "g")
    leaves = frozenset({("output", "x"), ("grad_input", "g")})

    def own(self, dims: int, channel_dim: int) -> set[int]:
        """Return that of the samples; a vector is one."""
        return {0} if dims > 1 else set()


@dataclass(frozen=True, slots=True)
class PerRow(Granularity):
    """One a vector of a linear layer's x or g: a row of output or grad_input."""

    name, each, operands = "row", "a row", ("x", "g")
    leaves = frozenset({("output", "x"), ("grad_input", "g")})
    in_convolutions = False

    def own(self, dims: int, channel_dim: int) -> set[int]:
        """Return all but that of the channels."""
        return set(range(dims - 1))


@dataclass(frozen=True, slots=True)
class RangeForm:
    """What range training makes a scale of; evaluation of activations has the moving average, as of one a tensor."""

    name: ClassVar[str]
    # For each element, beside quantising it, which finds minimum and maximum.
    operations: ClassVar[int] = 0
    # Whether it needs the average of the steps before, and whether it may leave out a part of the tensor.
    averages: ClassVar[bool] = False
    narrows: ClassVar[bool] = False

    def measure(self, t: Tensor, over: tuple[int, ...] | None) -> Range:
        """Return the range of t itself, see `tensor_range`."""
        return tensor_range(t, over)

    def choose(self, own: Range, average: Range) -> Range:
        """t's own range and, of a form that `averages`, that of the steps before -> the one that quantises t."""
        return own


@dataclass(frozen=True, slots=True)
class Dynamic(RangeForm):
    """[min(t), max(t)] of the tensor itself."""

    name = "dynamic"


@dataclass(frozen=True, slots=True)
class Hindsight(RangeForm):
    """r_t = m * r_{t-1} + (1 - m) * [min, max] of step t - 1, m the operand's momentum: one pass over the tensor.

    The first step has its own. Source: Fournarakis and Nagel, "In-hindsight quantization range estimation", 2021, there
    asymmetric for gradients.
    """

    name, averages, narrows = "hindsight", True, True

    def choose(self, own: Range, average: Range) -> Range:
        """Return that of before: no tensor that is not finite is made so by clipping, its step would be stored."""
        low, high = own
        return torch.where(low.isnan(), low, average[0]), torch.where(high.isnan(), high, average[1])


@dataclass(frozen=True, slots=True)
class Rounding:
    """What becomes of a value between two codes."""

    name: ClassVar[str]
    # For each element, beside quantising it; whether the same tensor may have other codes in another step.
    operations: ClassVar[int] = 0
    draws: ClassVar[bool] = False

    def codes(self, kernel: Kernel, t: Tensor, key: Key, limits: Mapping[str, Any]) -> Tensor:
        """t -> int8 codes, by the kernel: `kernel(t, **limits)` rounds to nearest, or with the noise of a `seed`.

        key: of this step's noise, (seed, step, layer, operand); None in evaluation, which draws none.
        limits: scale, zero_point, q_min, q_max and the bounds low and high (None: none) to clip t to.
        """
        return kernel(t, **limits)


@dataclass(frozen=True, slots=True)
class Nearest(Rounding):
    """q = round(v), ties to even."""

    name = "nearest"


@dataclass(frozen=True, slots=True)
class Stochastic(Rounding):
    """q = floor(v + u), u uniform in [0, 1): the mean of q is v. Philox4x32-10: four numbers for ten rounds of six."""

    name, operations, draws = "stochastic", 15, True

    def codes(self, kernel: Kernel, t: Tensor, key: Key, limits: Mapping[str, Any]) -> Tensor:
        """Return codes with the noise of the key; in evaluation the nearest."""
        return kernel(t, **limits, seed=None if key is None else keyed_seed(*key))


Form = TypeVar("Form")
# Plain names of forms without parameters.
NAMED = {
    form.name: form
    for form in (
        *(PerTensor(), PerChannel(), PerInputChannel(), PerSample(), PerRow()),
        *(Dynamic(), Hindsight()),
        *(Nearest(), Stochastic()),
    )
}


def form_of(field: str, kind: type[Form], value: Any) -> Form:
    """Return the form of a kind that a field holds, or that its plain name stands for; UserError where it is none."""
    found = NAMED.get(value) if isinstance(value, str) else value
    if isinstance(found, kind):
        return found
    names = ", ".join(name for name, form in NAMED.items() if isinstance(form, kind))
    raise UserError(f"{field}={value!r} is unknown; choose one of {names}, or a form's class by _target_")
