"""Parameterized Range Clipping (PRC): clip a gradient's range before it is quantised in the backward pass.

A bound never leaves the data's own range and never crosses 0, so sign and order are kept and |clip(t)| <= |t|.
Source: the clipping forms of Octo (USENIX ATC 2021) as read from its public demo; `Learned` trains a range as PACT and
LSQ do. A form of your own is a frozen dataclass with `build`, and a yaml in conf/quant/clip.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError


def ratio_bounds(low: Tensor, high: Tensor, coefficient: float) -> tuple[Tensor, Tensor]:
    """(c*low, c*high) for a tensor with range [low, high]: a one-sided tensor keeps the side that faces 0."""
    lower = torch.where(low < 0, torch.minimum(coefficient * low, high), low)
    upper = torch.where(high > 0, torch.maximum(coefficient * high, low), high)
    return lower, upper


def gaussian_bounds(t: Tensor, low: Tensor, high: Tensor, z: float, numel: int | None = None) -> tuple[Tensor, Tensor]:
    """(mean - z*sigma, mean + z*sigma), kept within [low, high] and each on its own side of 0.

    Mean and sigma are those of t and of as many zeros as make it `numel` elements.
    """
    share = 1.0 if numel is None else t.numel() / numel
    mean = t.mean() * share
    sigma = (share * (t - mean).square().mean() + (1 - share) * mean.square()).sqrt()
    # Both ends of the range hold for both bounds: the mean of a constant tensor may round past them.
    lower = torch.clamp(mean - z * sigma, max=0.0).clamp(low, high)
    upper = torch.clamp(mean + z * sigma, min=0.0).clamp(low, high)
    return lower, upper


def range_log_gradient(t: Tensor, q: Tensor, bound: Tensor, q_max: int) -> Tensor:
    """d log E / d log r of E = sum (Q(t; r) - t)^2 with Q(t; r) = s*clamp(round(t/s), -q_max, q_max), s = r/q_max.

    With e = Q - t and straight-through rounding, dQ/d log r = e inside the range and sign(t)*r outside (LSQ's rule
    in log r). Inside, e*e adds to the error itself: the result is 2*(sum_in e^2 + sum_out e*sign(t)*r) / E, about 2
    where rounding dominates (shrink r) and negative where clipping does (grow r).
    """
    scale = bound / q_max
    error = q.to(t.dtype) * scale - t
    outside = t.abs() > bound
    slope = torch.where(outside, torch.sign(t) * bound, error)
    return 2 * (error * slope).sum() / (error * error).sum().clamp(min=torch.finfo(torch.float32).tiny)


class Clipper(nn.Module, ABC):
    """What narrows the range of one layer's gradient."""

    # For each element, beside quantising it.
    operations: ClassVar[int] = 0

    @abstractmethod
    def bounds(self, t: Tensor, low: Tensor, high: Tensor, numel: int | None = None) -> tuple[Tensor, Tensor]:
        """t with range [low, high], one of `numel` elements but for zeros -> (lower, upper) to clip to."""

    def learn(self, t: Tensor, q: Tensor, scale: Tensor, q_max: int) -> None:
        """See the codes q of t in training; a form without state learns nothing."""


class ClipForm(ABC):
    """What `quant/clip=` names: a frozen dataclass, its fields the form's settings."""

    # Whether its bounds are those of a whole tensor; else each range of a finer granularity has its own.
    per_tensor: ClassVar[bool] = True

    @abstractmethod
    def build(self) -> Clipper:
        """Return the clipper of one layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio(ClipForm):
    """[c*min, c*max]; coefficient: c, in (0, 1]."""

    per_tensor: ClassVar[bool] = False

    coefficient: float

    def __post_init__(self) -> None:
        """Refuse a coefficient outside its domain."""
        if not 0 < self.coefficient <= 1:
            raise UserError(f"quant.clip.coefficient must be in (0, 1], got {self.coefficient}")

    def build(self) -> "RatioClipper":
        """Return the clipper of one layer."""
        return RatioClipper(self)


class RatioClipper(Clipper):
    """A share of the range."""

    def __init__(self, form: Ratio) -> None:
        super().__init__()
        self.form = form

    def bounds(self, t: Tensor, low: Tensor, high: Tensor, numel: int | None = None) -> tuple[Tensor, Tensor]:
        """See `ratio_bounds`."""
        return ratio_bounds(low, high, self.form.coefficient)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian(ClipForm):
    """[mean - z*sigma, mean + z*sigma] of the tensor; z > 0."""

    z: float

    def __post_init__(self) -> None:
        """Refuse a z that is not above 0."""
        if not self.z > 0:
            raise UserError(f"quant.clip.z must be above 0, got {self.z}")

    def build(self) -> "GaussianClipper":
        """Return the clipper of one layer."""
        return GaussianClipper(self)


class GaussianClipper(Clipper):
    """So many deviations around the mean."""

    # The sums of t and t*t, and the distance.
    operations = 3

    def __init__(self, form: Gaussian) -> None:
        super().__init__()
        self.form = form

    def bounds(self, t: Tensor, low: Tensor, high: Tensor, numel: int | None = None) -> tuple[Tensor, Tensor]:
        """See `gaussian_bounds`."""
        return gaussian_bounds(t, low, high, self.form.z, numel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned(ClipForm):
    """+-rho*m, where m is the absolute maximum of the last step; log rho steps down the quantisation error's slope.

    rho_init: rho at the start, in (0, 1]. learning_rate: of log rho.
    """

    rho_init: float
    learning_rate: float

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        if not 0 < self.rho_init <= 1:
            raise UserError(f"quant.clip.rho_init must be in (0, 1], got {self.rho_init}")
        if not self.learning_rate >= 0:
            raise UserError(f"quant.clip.learning_rate must be 0 or more, got {self.learning_rate}")

    def build(self) -> "LearnedClipper":
        """Return the clipper of one layer."""
        return LearnedClipper(self)


class LearnedClipper(Clipper):
    """State, in the checkpoint: log rho and the last step's absolute maximum, 0 before the first."""

    # The error of every code.
    operations = 4
    log_rho: Tensor
    last_max: Tensor

    def __init__(self, form: Learned) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("log_rho", torch.tensor(math.log(form.rho_init)))
        self.register_buffer("last_max", torch.tensor(0.0))

    def bounds(self, t: Tensor, low: Tensor, high: Tensor, numel: int | None = None) -> tuple[Tensor, Tensor]:
        """+-rho*m, each side within the data's own range."""
        peak = torch.maximum(low.abs(), high.abs())
        reference = torch.where(self.last_max > 0, self.last_max, peak)
        bound = torch.minimum(self.log_rho.exp() * reference, peak)
        lower = torch.minimum(torch.maximum(-bound, low.clamp(max=0.0)), high)
        return lower, torch.maximum(torch.minimum(bound, high.clamp(min=0.0)), low)

    def learn(self, t: Tensor, q: Tensor, scale: Tensor, q_max: int) -> None:
        """Step log rho against d log E / d log rho (clamped to +-2, rho to (0, 1]) and keep this step's maximum.

        A maximum that is not finite leaves both as they are.
        """
        peak = t.abs().max()
        gradient = range_log_gradient(t, q, scale * q_max, q_max).clamp(-2.0, 2.0).nan_to_num(0.0)
        gradient = torch.where(peak.isfinite(), gradient, 0.0)
        self.log_rho.sub_(self.form.learning_rate * gradient).clamp_(-8.0, 0.0)
        self.last_max.copy_(torch.where(peak.isfinite(), peak, self.last_max))
