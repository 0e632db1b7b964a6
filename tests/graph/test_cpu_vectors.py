"""Vectors of compiled loops against numpy, and what lies beyond their lanes stays as it is."""

import numpy as np
import pytest
from numba import njit

from octo_exp.kernels.cpu.vectors import LANES, clamp, floats, load, multiply_add, rint, spread, store, where, within

SIZES = [1, 7, 15, 16]
BEYOND = 77


@njit
def convert(x, n, y):
    store(y, 3, n, floats(load(x, 2, n)))


@pytest.mark.parametrize("source", [np.int8, np.int32, np.float32])
@pytest.mark.parametrize("target", [np.int8, np.float32])
@pytest.mark.parametrize("n", SIZES)
def test_only_the_first_lanes_are_written(n, source, target):
    x = np.arange(-9, 21).astype(source)
    y = np.full(24, BEYOND, target)
    convert(x, n, y)
    assert np.array_equal(y[3 : 3 + n], x[2 : 2 + n])
    assert (np.delete(y, np.arange(3, 3 + n)) == BEYOND).all()


@pytest.mark.parametrize("n", SIZES)
def test_lanes_that_are_not_read_are_zero(n):
    y = np.empty(LANES, np.float32)

    @njit
    def run(x, n, y):
        store(y, 0, LANES, load(x, 0, n))

    run(np.full(LANES, np.nan, np.float32) if n < 1 else np.ones(LANES, np.float32), n, y)
    assert np.array_equal(y, np.arange(LANES) < n)


@njit
def arithmetic(a, b, c, i, j, y):
    p, q, r = load(a, 0, LANES), load(b, 0, LANES), load(c, 0, LANES)
    store(y[0], 0, LANES, p + q)
    store(y[1], 0, LANES, p - q)
    store(y[2], 0, LANES, p * q)
    store(y[3], 0, LANES, p / q)
    store(y[4], 0, LANES, multiply_add(p, q, r))
    store(y[5], 0, LANES, rint(p))
    store(y[6], 0, LANES, clamp(p, spread(np.float32(-1)), spread(np.float32(2))))
    store(y[7], 0, LANES, floats(load(i, 0, LANES) - load(j, 0, LANES)))
    store(y[8], 0, LANES, floats(load(i, 0, LANES) + load(j, 0, LANES)))
    return within(p, spread(np.float32(-1)), spread(np.float32(2)))


def test_arithmetic_is_that_of_float32_and_int32():
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=LANES).astype(np.float32) * 2 for _ in range(3))
    # Halves go to even, and the limits lie inside.
    a[:8] = [0.5, 1.5, 2.5, -0.5, -1.5, 2.0, -1.0, 3.0]
    i = rng.integers(-(2**30), 2**30, LANES).astype(np.int32)
    # Beyond what float32 holds: the difference is taken before it is rounded.
    j = i - rng.integers(-100, 100, LANES).astype(np.int32)
    y = np.empty((9, LANES), np.float32)
    bits = arithmetic(a, b, c, i, j, y)
    exact = (a.astype(np.float64) * b + c).astype(np.float32)
    wanted = [a + b, a - b, a * b, a / b, exact, np.rint(a), a.clip(-1, 2), i - j, i + j]
    for k, want in enumerate(wanted):
        if k == 4:
            # One rounding or two, as the machine has it.
            two = a * b + c
            assert (np.abs(y[k] - want) <= np.abs(two - want)).all()
        else:
            assert np.array_equal(y[k], want.astype(np.float32)), k
    inside = (a >= -1) & (a <= 2)
    assert [bits >> k & 1 for k in range(LANES)] == inside.tolist()
    assert inside[5:8].tolist() == [True, True, False]


@njit
def masked(bits, v, y):
    store(y, 0, LANES, where(np.uint16(bits), load(v, 0, LANES)))


@pytest.mark.parametrize("bits", [0, 1, 0b1000_0000_0101_1010, 0xFFFF])
def test_bits_choose_and_what_they_leave_is_zero(bits):
    v = np.arange(1, LANES + 1, dtype=np.float32)
    v[3] = np.inf if not bits >> 3 & 1 else 4
    y = np.empty(LANES, np.float32)
    masked(bits, v, y)
    chosen = np.array([bits >> k & 1 for k in range(LANES)], bool)
    assert np.array_equal(y, np.where(chosen, v, 0))
