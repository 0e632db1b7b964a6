"""Parameterized Range Clipping (PRC): clip a gradient's range before it is quantised in the backward pass.

Forms: `ratio` clips to [c*min, c*max]; `gaussian` to mean +- z*sigma; `learned` to +-rho*m, where m is the absolute
maximum of the last step and rho > 0 is trained to lower the quantisation error. A bound never leaves the data's own
range and never crosses 0, so sign and order are kept and |clip(t)| <= |t|.
Source: the clipping forms of Octo (USENIX ATC 2021) as read from its public demo; `learned` trains a range as PACT and
LSQ do.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError

FORMS = ("ratio", "gaussian", "learned")
# Operations for each element, beside quantising: the sums of t and t*t; the error of every code.
_OPERATIONS = {"ratio": 0, "gaussian": 3, "learned": 4}


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


class Clipper(nn.Module):
    """What narrows the range of one layer's gradient; `operations`: for each element, beside quantising it."""

    operations: int

    def bounds(self, t: Tensor, low: Tensor, high: Tensor, numel: int | None = None) -> tuple[Tensor, Tensor]:
        """t with range [low, high], one of `numel` elements but for zeros -> (lower, upper) to clip to."""
        raise NotImplementedError

    def learn(self, t: Tensor, q: Tensor, scale: Tensor, q_max: int) -> None:
        """See the codes q of t in training; a form without state learns nothing."""


class ClipForm(Protocol):
    """What `quant.clip` names: a frozen dataclass of this room, its fields the form's settings."""

    def build(self) -> Clipper:
        """Return the clipper of one layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipping:
    """PRC as a config: its form and the form's hyper-parameters (those of the other forms are ignored)."""

    form: str
    coefficient: float
    z: float
    rho_init: float
    learning_rate: float

    def __post_init__(self) -> None:
        """Refuse an unknown form and values outside their domain."""
        if self.form not in FORMS:
            raise UserError(f"quant.clip.form={self.form!r} is unknown; choose one of {', '.join(FORMS)}")
        if not 0 < self.coefficient <= 1:
            raise UserError(f"quant.clip.coefficient must be in (0, 1], got {self.coefficient}")
        if self.z <= 0 or not 0 < self.rho_init <= 1 or self.learning_rate < 0:
            raise UserError("quant.clip needs z > 0, rho_init in (0, 1] and learning_rate >= 0")

    def build(self) -> "RangeClipper":
        """Return the stateful clipper of one layer."""
        return RangeClipper(self)


class RangeClipper(Clipper):
    """One layer's PRC. State (form `learned` only): log rho and last step's absolute maximum, in the checkpoint."""

    log_rho: Tensor
    last_max: Tensor

    def __init__(self, spec: Clipping) -> None:
        super().__init__()
        self.spec, self.operations = spec, _OPERATIONS[spec.form]
        learned = spec.form == "learned"
        self.register_buffer("log_rho", torch.tensor(math.log(spec.rho_init)), persistent=learned)
        self.register_buffer("last_max", torch.tensor(0.0), persistent=learned)

    def bounds(self, t: Tensor, low: Tensor, high: Tensor, numel: int | None = None) -> tuple[Tensor, Tensor]:
        """Return what the form says, on the sides of 0 that t has."""
        if self.spec.form == "ratio":
            return ratio_bounds(low, high, self.spec.coefficient)
        if self.spec.form == "gaussian":
            return gaussian_bounds(t, low, high, self.spec.z, numel)
        peak = torch.maximum(low.abs(), high.abs())
        reference = torch.where(self.last_max > 0, self.last_max, peak)
        bound = torch.minimum(self.log_rho.exp() * reference, peak)
        lower = torch.minimum(torch.maximum(-bound, low.clamp(max=0.0)), high)
        return lower, torch.maximum(torch.minimum(bound, high.clamp(min=0.0)), low)

    def learn(self, t: Tensor, q: Tensor, scale: Tensor, q_max: int) -> None:
        """Step log rho against d log E / d log rho (clamped to +-2, rho to (0, 1]) and keep this step's maximum.

        A maximum that is not finite leaves both as they are.
        """
        if self.spec.form != "learned":
            return
        peak = t.abs().max()
        gradient = range_log_gradient(t, q, scale * q_max, q_max).clamp(-2.0, 2.0).nan_to_num(0.0)
        gradient = torch.where(peak.isfinite(), gradient, 0.0)
        self.log_rho.sub_(self.spec.learning_rate * gradient).clamp_(-8.0, 0.0)
        self.last_max.copy_(torch.where(peak.isfinite(), peak, self.last_max))
