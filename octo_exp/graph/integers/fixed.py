"""Arithmetic `fixed`: between input codes and logit codes there are integers alone.

A real factor is a whole number and a shift, factor = value * 2^-shift. Factors are float32 as other runtimes compute
them, and a float32 is a number of 24 bits and a power of 2, so the pair holds it exactly:

    requantise   y = clamp(round(round24(sum * value) / 2^shift) + zero, -128, 127); round24 keeps the 24 leading bits;
                 halves go to even both times: where |sum| < 2^24, the code that float32 hardware finds
    add          y = clamp(floor((s + 2^(shift-1)) / 2^shift) + zero), s = (x1 - z1) * value_1 + (x2 - z2) * value_2
    average      the mean of a window's codes, halves to even

Sums are int32, products with a value int64. These forms are plain torch on any device; `cpu` has them compiled.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.parts import Q_MAX, Q_MIN

# |sum| < 2^31 and value < 2^24: with this shift all products become 0, and a longer one would leave int64.
MAX_SHIFT = 62


class Factors(NamedTuple):
    """value * 2^-shift: value int32 [C] below 2^24, shift int32 [C] of 1 to MAX_SHIFT."""

    value: np.ndarray
    shift: np.ndarray


class AddFactors(NamedTuple):
    """Of an addition's two inputs: values below 2^31, one shift of 1 to MAX_SHIFT - 8."""

    value_1: int
    value_2: int
    shift: int


def factors_of(real: np.ndarray) -> Factors:
    """real [C] float32 above 0 -> the same numbers as whole numbers and shifts; UserError from 2^23 up."""
    mantissa, exponent = np.frexp(real.astype(np.float64))
    # An infinite one has no exponent.
    if not np.isfinite(real).all() or (exponent > 23).any():
        raise UserError(f"a factor of {float(real.max()):.3g} between two scales is too large for an integer graph")
    value, shift = (mantissa * 2**24).astype(np.int64), 24 - exponent
    # What is shifted further is nothing: it may lose its last bits.
    excess = np.maximum(shift - MAX_SHIFT, 0)
    value = value >> np.minimum(excess, 62)
    return Factors(value=value.astype(np.int32), shift=(shift - excess).astype(np.int32))


def conv_factors(x_scale: float, w_scales: np.ndarray, y_scale: float) -> Factors:
    """w_scales [O] -> factors of x_scale * w_scale / y_scale, in float32 throughout."""
    with np.errstate(all="ignore"):
        real = np.float32(x_scale) * w_scales.astype(np.float32) / np.float32(y_scale)
    return factors_of(real)


def add_factors(s1: float, s2: float, s_y: float) -> AddFactors:
    """Scales of both inputs and the output -> the factors of s1 / s_y and s2 / s_y, to 30 bits of the larger."""
    with np.errstate(all="ignore"):
        real = np.array([s1, s2], np.float32) / np.float32(s_y)
    exponent = int(np.frexp(np.float64(real.max()))[1])
    if not np.isfinite(real).all() or not -MAX_SHIFT <= exponent <= 23:
        raise UserError(f"factors of {real[0]:.3g} and {real[1]:.3g} in an addition are out of range of integers")
    shift = min(30 - exponent, MAX_SHIFT - 8)
    value_1, value_2 = (int(v) for v in np.rint(real.astype(np.float64) * 2.0**shift))
    return AddFactors(value_1=value_1, value_2=value_2, shift=shift)


def _drop(magnitude: Tensor, shift: Tensor) -> Tensor:
    """magnitude int64 >= 0 -> magnitude / 2^shift, halves to even; shift >= 0."""
    odd = magnitude >> shift & 1
    half = (torch.ones_like(magnitude) << shift >> 1) - 1 + odd
    return magnitude + torch.where(shift > 0, half, 0) >> shift


def _excess(magnitude: Tensor) -> Tensor:
    """magnitude int64 >= 0 -> how many bits it has beyond 24; at least 0."""
    left, found = magnitude >> 24, torch.zeros_like(magnitude)
    for bits in (32, 16, 8, 4, 2, 1):
        more = left >> bits > 0
        found += torch.where(more, bits, 0)
        left = torch.where(more, left >> bits, left)
    return found + (left > 0)


def requantize(acc: Tensor, value: Tensor, shift: Tensor, zero: int) -> Tensor:
    """acc [N, C, H, W] int32, value, shift [C] int32 -> codes int8; see the module."""
    value, shift = (v.long().reshape(-1, 1, 1) for v in (value, shift))
    product = acc.long() * value
    magnitude = product.abs()
    excess = _excess(magnitude)
    rounded = _drop(_drop(magnitude, excess) << excess, shift.expand_as(product))
    return (rounded * product.sign() + zero).clamp_(Q_MIN, Q_MAX).to(torch.int8)


def add(x1: Tensor, x2: Tensor, factors: AddFactors, zeros: tuple[int, int, int]) -> Tensor:
    """x1, x2 int8 of one shape, zeros (z1, z2, z_y) -> codes int8; see the module."""
    product = (x1.long() - zeros[0]) * factors.value_1 + (x2.long() - zeros[1]) * factors.value_2
    code = product + (1 << factors.shift - 1) >> factors.shift
    return (code + zeros[2]).clamp_(Q_MIN, Q_MAX).to(torch.int8)


def average(sums: Tensor, count: int) -> Tensor:
    """Sums of `count` codes, int32 -> the mean as codes int8, halves to even."""
    twice = 2 * sums + count
    mean = torch.div(twice, 2 * count, rounding_mode="floor")
    # A half was rounded up; where that made it odd, the even number is one below.
    up = (torch.remainder(twice, 2 * count) == 0) & (torch.remainder(mean, 2) == 1)
    return (mean - up.to(mean.dtype)).to(torch.int8)
