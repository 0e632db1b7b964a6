"""Compiled loops of stochastic rounding on a CPU (numba): as `cpu_loops`, with a draw for each element."""

import numpy as np

from octo_exp.kernels.cpu.compiled import INNER, OUTER, njit, prange
from octo_exp.kernels.cpu.loops import BLOCK
from octo_exp.kernels.plain import philox

_MULTIPLIERS, _KEY_STEPS = (tuple(np.uint64(v) for v in words) for words in (philox.MULTIPLIERS, philox.KEY_STEPS))
_NO_WORD, _WORD, _LOW_WORD = np.uint64(0), np.uint64(32), np.uint64(philox.LOW_WORD)
_UNIT = np.float32(philox.UNIT)


@njit(**INNER)
def _uniform(i, seed):
    # See `philox.uniform`; every word is a uint64, for numba makes floats of mixed signs.
    c0, c1, c2, c3 = i & _LOW_WORD, i >> _WORD, _NO_WORD, _NO_WORD
    k0, k1 = seed & _LOW_WORD, seed >> _WORD
    for _ in range(philox.ROUNDS):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = b >> _WORD ^ c1 ^ k0, b & _LOW_WORD, a >> _WORD ^ c3 ^ k1, a & _LOW_WORD
        k0, k1 = k0 + _KEY_STEPS[0] & _LOW_WORD, k1 + _KEY_STEPS[1] & _LOW_WORD
    return np.float32(np.int64(min(c0, _LOW_WORD - c0))) * _UNIT


@njit(**INNER)
def _quantize_noisy(t, out, first, seed, scale, zero_point, q_min, q_max, low, high):
    for i in range(t.size):
        v = t[i]
        v = low if v < low else v
        v = high if v > high else v
        v = np.floor(v / scale + _uniform(np.uint64(first + i), seed)) + zero_point
        v = q_min if v < q_min else v
        v = q_max if v > q_max else v
        out[i] = np.int8(v)


@njit(**OUTER)
def quantize_noisy(t, out, seed, scale, zero_point, q_min, q_max, low, high):
    """As `quantize`, with floor(. + noise) for rounding; element i draws from (seed, i), a uint64."""
    n = t.size
    for b in prange((n + BLOCK - 1) // BLOCK):
        start, stop = b * BLOCK, min(n, b * BLOCK + BLOCK)
        _quantize_noisy(t[start:stop], out[start:stop], start, seed, scale, zero_point, q_min, q_max, low, high)
