"""From a tensor to its range, and from a range to scale and zero point.

Symmetric: s = max(|low|, |high|) / (2^(b-1) - 1), codes in [-(2^(b-1) - 1), 2^(b-1) - 1], zero point 0.
Asymmetric: the range is first extended to contain 0; s = (high - low) / (2^b - 1), z = round(q_min - low / s), codes in
[-2^(b-1), 2^(b-1) - 1]; real 0 is then an integer, so padding with z is exact.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octo_exp.kernels.ops import dense_flat

# The smallest normal float32: an all-zero tensor gets it as its scale, so nothing divides by 0.
TINY = float(torch.finfo(torch.float32).tiny)


def in_backward() -> bool:
    """Whether a backward pass is running: what is computed forward in it is computed again, by checkpointing."""
    running: int = torch._C._current_graph_task_id()
    return running != -1


def code_limits(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """(q_min, q_max) of a code of 2 to 8 bits."""
    top = 2 ** (bits - 1) - 1
    return (-top, top) if symmetric else (-top - 1, top)


def tensor_range(t: Tensor, channel_dim: int | None = None) -> tuple[Tensor, Tensor]:
    """(min, max) of t: scalars, or one a channel, shaped to broadcast against t."""
    if channel_dim is None:
        # In the order of memory: aminmax of a channels-last tensor would copy it first.
        flat = dense_flat(t)
        low, high = torch.aminmax(t if flat is None else flat)
        return low, high
    others = [d for d in range(t.dim()) if d != channel_dim]
    return t.amin(others, keepdim=True), t.amax(others, keepdim=True)


def finite_or_nan(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
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
        taken = taken if step is None else taken & torch.isfinite(step)
        self.low.copy_(torch.where(taken, new_low, self.low))
        self.high.copy_(torch.where(taken, new_high, self.high))
        self.count.add_(taken)
