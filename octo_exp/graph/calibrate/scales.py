"""From what was observed of a tensor to its scale and zero point.

absmax takes all that was seen. percentile leaves out the same share of the values at either end. mse takes the range of
least squared error between the sample and its codes: what is clipped weighs against how finely the rest is told apart.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate.observe import Observed
from octo_exp.quant.forms import scale_zero_point

METHODS = ("absmax", "percentile", "mse")
# mse: fractions of the observed bound that are tried, and how often each side is tried anew beside the other.
_FRACTIONS = torch.linspace(1.0, 0.02, 50).tolist()
_ROUNDS = 2


class Quantization(NamedTuple):
    """What codes mean: real value = (code - zero) * scale, codes in [-128, 127]."""

    scale: float
    zero: int


def check_method(method: object, percentile: float) -> None:
    """Raise UserError for an unknown method or a percentile that leaves nothing."""
    if method not in METHODS:
        raise UserError(f"activations={method!r} is unknown; choose one of {', '.join(METHODS)}")
    if method == "percentile" and not 50 < percentile <= 100:
        raise UserError(f"percentile={percentile} must be above 50 and at most 100")


def quantization(low: float, high: float, *, symmetric: bool = False) -> Quantization:
    """Range, extended to contain 0 -> scale and zero point; symmetric: signed codes, or unsigned from low = 0 on.

    Symmetric codes are those of [-bound, bound], zero point 0, or of [0, high], which lie at -128 to 127.
    """
    symmetric = symmetric and low < 0
    scale, zero = scale_zero_point(torch.tensor(low), torch.tensor(high), 8, symmetric=symmetric)
    return Quantization(float(scale), 0 if zero is None else int(zero))


def choose(seen: Observed, method: str, percentile: float, *, symmetric: bool) -> Quantization:
    """Return scale and zero point of a tensor by a method of METHODS; symmetric: see `quantization`.

    A percentile that would leave nothing but 0 leaves all that was seen, and a tensor of zeros counts as one of
    [-1, 1], within its bounds: a ReLU's zero point is -128 whatever reaches it.
    """
    low, high = seen.low, seen.high
    if low == high == 0:
        return quantization(max(-1.0, seen.bounds[0]), min(1.0, seen.bounds[1]), symmetric=symmetric)
    if method == "percentile":
        shares = torch.tensor([1 - percentile / 100, percentile / 100])
        ends = tuple(float(v) for v in torch.quantile(seen.values, shares))
        low, high = (low, high) if ends == (0.0, 0.0) else ends
    elif method == "mse":
        low, high = _least_error(seen.values, min(low, 0.0), max(high, 0.0), symmetric)
    return quantization(low, high, symmetric=symmetric)


def squared_error(values: Tensor, q: Quantization) -> float:
    """Sum of (x - x')^2 over values x and what their codes stand for, x'."""
    codes = (values / q.scale).round_().clamp_(-128 - q.zero, 127 - q.zero)
    return float(codes.mul_(q.scale).sub_(values).square_().sum(dtype=torch.float64))


def _least_error(values: Tensor, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """Try each side's fractions with the other side as it stands, in turn."""
    best = (low, high)
    for _ in range(_ROUNDS):
        for side in (0, 1):
            bound = (low, high)[side]
            tried = [(bound * f, best[1]) if side == 0 else (best[0], bound * f) for f in _FRACTIONS if bound != 0]
            best = min([best, *tried], key=lambda r: squared_error(values, quantization(*r, symmetric=symmetric)))
    return best
