"""Whole numbers that are exact or refused: products, sums and quotients of columns, none of which can wrap.

Every count stays below LIMIT = 2**53, where a float64 holds it as exactly as an int64 does.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import rough

LIMIT = 2**53

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Splits the 53 bits of a float64 into two halves (Veltkamp).
_SPLITTER = 2.0**27 + 1


def refusal(count: float, unit: str, remedy: str, where: str = "on this machine") -> UserError:
    """Return the one line for a count that is too large; `remedy` follows "check"."""
    return UserError(f"{rough(count)} {unit} {where}: more than 2^53 cannot be counted exactly; check {remedy}")


def check(counts: NDArray[Any], unit: str, remedy: str) -> None:
    """Raise `UserError` where a count reaches LIMIT."""
    if counts.size and counts.max() >= LIMIT:
        raise refusal(float(counts.max()), unit, remedy)


def product(unit: str, remedy: str, *factors: IntArray) -> IntArray:
    """Product of arrays that broadcast, each in 0..LIMIT - 1; `UserError` where it reaches LIMIT."""
    # Where the largest factors stay below, so does every product, and none is looked at.
    bounded = math.prod(_largest(factor) for factor in factors) < LIMIT
    exact = factors[0]
    for factor in factors[1:]:
        if not bounded:
            # A float product cannot wrap, and is exact or at least LIMIT.
            check(np.multiply(exact, factor, dtype=np.float64), unit, remedy)
        exact = exact * factor
    return np.asarray(exact, np.int64)


def _largest(counts: IntArray) -> int:
    return int(counts.max(initial=1))


def sum_rows(each: IntArray, unit: str, remedy: str) -> IntArray:
    """Sum over GEMMs of counts in 0..LIMIT - 1, [P, L] -> [P]; `UserError` where it reaches LIMIT."""
    # Row by row, so that a machine's figure does not depend on its neighbours.
    rows = np.ascontiguousarray(each)
    if _largest(rows) * rows.shape[1] >= LIMIT:
        check(rows.sum(axis=1, dtype=np.float64), unit, remedy)
    return np.asarray(rows.sum(axis=1))


def ceil_ratio(top: Any, bottom: Any) -> FloatArray:
    """ceil(top / bottom), exact for whole numbers 0 <= top < LIMIT and bottom >= 1, as floats.

    Integers divide many times slower. A quotient above a whole number n is at least n + 1 / bottom; it could only be
    rounded down to n where n * bottom >= LIMIT, which is more than `top`.
    """
    return np.asarray(np.ceil(top / bottom))


def ceil_quotient(top: IntArray, bottom: FloatArray, unit: str, remedy: str) -> IntArray:
    """ceil(top / bottom), exact for 0 <= top < LIMIT and bottom > 0, or infinite; `UserError` where it reaches LIMIT.

    Rounding can bring a quotient down to a whole number, never past one, and only where `bottom` is neither whole nor a
    power of two. Whether it did so is told by the exact product of that whole number and `bottom`, as the sum of two
    floats (Dekker).
    """
    quotient = np.asarray(top / bottom)
    check(quotient, unit, remedy)
    whole = np.asarray(np.ceil(quotient))
    rounding = np.floor(bottom) != bottom
    if rounding.any():
        rounding = rounding & (np.frexp(bottom)[0] != 0.5)
    if rounding.any():
        doubtful = rounding & (quotient == whole)
        tops, bottoms = (np.broadcast_to(side, whole.shape)[doubtful] for side in (top, bottom))
        near, rest = _exact_product(whole[doubtful], bottoms)
        whole[doubtful] += near - tops + rest < 0
    return np.asarray(whole, np.int64)


def _exact_product(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The rounded product, and what rounding took from it."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    rounded = a * b
    return rounded, ((a_high * b_high - rounded) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(value: FloatArray) -> tuple[FloatArray, FloatArray]:
    high = value * _SPLITTER
    high = high - (high - value)
    return high, value - high
