"""Multiplier and shift against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.graph.integers import fixed

SMALL_FLOATS = st.floats(2**-30, 2**20, width=32)
ACC = st.integers(-(2**31), 2**31 - 1)


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def clamp(code: int) -> int:
    return min(max(code, -128), 127)


@given(SMALL_FLOATS)
def test_a_factor_is_held_exactly(real):
    value, shift = fixed.factors_of(np.float32([real]))
    assert Fraction(int(value[0]), 2 ** int(shift[0])) == Fraction(real)
    assert value.dtype == shift.dtype == np.int32
    assert 0 < value[0] < 2**24
    assert 1 <= shift[0] <= fixed.MAX_SHIFT


@pytest.mark.parametrize("real", [1e-44, 1e-30, 1e-18, 2.0**-39])
def test_a_factor_too_small_for_any_sum_gives_the_zero_point(real):
    value, shift = fixed.factors_of(np.float32([real]))
    acc = torch.tensor([[[[2**31 - 1]], [[-(2**31)]]]], dtype=torch.int32)
    codes = fixed.requantize(acc, *(torch.tensor(v).expand(2) for v in (value, shift)), zero=-7)
    assert set(codes.flatten().tolist()) == {-7}
    assert 1 <= shift[0] <= fixed.MAX_SHIFT


def test_a_factor_too_large_is_refused():
    assert fixed.factors_of(np.float32([2**23 - 1])).shift[0] >= 1
    with pytest.raises(UserError, match=r"a factor of 8\.39e\+06 between two scales is too large"):
        fixed.factors_of(np.float32([1.0, 2**23]))


def nearest_float(value: Fraction) -> Fraction:
    """value rounded to 24 bits, halves to even."""
    if value == 0:
        return value
    # One too large at most: 2^(exponent - 1) <= |value| < 2^exponent.
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length() + 1
    if abs(value) < Fraction(2) ** (exponent - 1):
        exponent -= 1
    step = Fraction(2) ** (exponent - 24)
    return round(value / step) * step


@given(st.fractions(-(2**40), 2**40, max_denominator=2**40))
@example(Fraction(536870913, 2**30))
def test_the_oracle_is_a_cast_to_float32(value):
    # numpy rounds a float64 once; a fraction that float64 cannot hold would be rounded twice.
    exact = Fraction(float(value))
    assert nearest_float(exact) == Fraction(float(np.float32(float(exact))))


@given(st.lists(st.tuples(ACC, SMALL_FLOATS), min_size=1, max_size=40), st.integers(-128, 127))
@example([(536870913, 2.0**-30)], 0)
def test_requantise_is_the_product_rounded_twice_halves_to_even(pairs, zero):
    sums, reals = zip(*pairs, strict=True)
    value, shift = fixed.factors_of(np.float32(reals))
    acc = torch.tensor(sums, dtype=torch.int32).reshape(1, -1, 1, 1)
    codes = fixed.requantize(acc, torch.tensor(value), torch.tensor(shift), zero)
    assert codes.dtype == torch.int8
    expected = [clamp(round(nearest_float(a * Fraction(r))) + zero) for a, r in pairs]
    assert codes.flatten().tolist() == expected


@given(st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=40), st.floats(2**-24, 1, width=32))
def test_it_is_what_float32_hardware_computes(sums, real):
    value, shift = (torch.tensor(v) for v in fixed.factors_of(np.float32([real])))
    acc = torch.tensor(sums, dtype=torch.int32).reshape(-1, 1, 1, 1)
    expected = np.rint(np.float32(sums) * np.float32(real)).clip(-128, 127)
    assert fixed.requantize(acc, value, shift, 0).flatten().tolist() == expected.tolist()


def test_halves_go_to_even():
    value, shift = (torch.tensor(v) for v in fixed.factors_of(np.float32([0.5])))
    acc = torch.tensor([-5, -3, -1, 0, 1, 3, 5], dtype=torch.int32).reshape(7, 1, 1, 1)
    assert fixed.requantize(acc, value, shift, 0).flatten().tolist() == [-2, -2, 0, 0, 0, 2, 2]


def test_factors_of_a_convolution_are_those_of_float32():
    w = np.float32([0.013, 0.4])
    value, shift = fixed.conv_factors(0.1, w, 0.3)
    real = np.float32(0.1) * w / np.float32(0.3)
    assert real.dtype == np.float32
    assert (value / 2.0**shift).tolist() == real.astype(np.float64).tolist()


SCALES = st.floats(1e-4, 10.0)
CODES = st.integers(-128, 127)


@given(SCALES, SCALES, SCALES, CODES, CODES, st.tuples(CODES, CODES, CODES))
def test_an_addition_is_the_exact_sum_but_for_the_factors_last_bit(s1, s2, s_y, x1, x2, zeros):
    factors = fixed.add_factors(s1, s2, s_y)
    assert max(factors.value_1, factors.value_2) < 2**31
    code = fixed.add(torch.tensor([x1], dtype=torch.int8), torch.tensor([x2], dtype=torch.int8), factors, zeros)
    real = [Fraction(float(np.float32(s) / np.float32(s_y))) for s in (s1, s2)]
    total = (x1 - zeros[0]) * real[0] + (x2 - zeros[1]) * real[1]
    # Either factor is half a step of 2^-shift off, at most.
    off = Fraction(abs(x1 - zeros[0]) + abs(x2 - zeros[1]), 2 ** (factors.shift + 1))
    assert clamp(half_up(total - off) + zeros[2]) <= int(code) <= clamp(half_up(total + off) + zeros[2])
    # 30 bits of the larger one: what is lost is far below a code.
    assert off < Fraction(1, 1000) or abs(total) > 1000


@pytest.mark.parametrize("scales", [(1e9, 1.0, 1e-9), (1e30, 1.0, 1e-30), (1e300, 1.0, 1.0), (1.0, 1.0, 1e-300)])
def test_factors_out_of_range_are_refused(scales):
    s1, s2, s_y = scales
    with pytest.raises(UserError, match="in an addition are out of range of integers"):
        fixed.add_factors(s1, s2, s_y)
    with pytest.raises(UserError, match=r"a factor of .* between two scales"):
        fixed.conv_factors(s1, np.float32([s2]), s_y)


@given(st.integers(1, 49), st.data())
def test_an_average_is_rounded_half_to_even(count, data):
    total = data.draw(st.integers(-128 * count, 127 * count))
    assert fixed.average(torch.tensor([total], dtype=torch.int32), count).tolist() == [round(Fraction(total, count))]
