"""Noise for compiled loops on a CPU (numba): `philox.uniform`, a draw at a time."""

import numpy as np

from octo_exp.kernels.cpu.compiled import INNER, njit
from octo_exp.kernels.plain import philox

_MULTIPLIERS, _KEY_STEPS = (tuple(np.uint64(v) for v in words) for words in (philox.MULTIPLIERS, philox.KEY_STEPS))
_NO_WORD, _WORD, _LOW_WORD = np.uint64(0), np.uint64(32), np.uint64(philox.LOW_WORD)
_UNIT = np.float32(philox.UNIT)


@njit(**INNER)
def uniform(i, seed):
    """Return what counter i draws, a float32; both are uint64, as every word, for numba makes floats of mixed signs."""
    c0, c1, c2, c3 = i & _LOW_WORD, i >> _WORD, _NO_WORD, _NO_WORD
    k0, k1 = seed & _LOW_WORD, seed >> _WORD
    for _ in range(philox.ROUNDS):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = b >> _WORD ^ c1 ^ k0, b & _LOW_WORD, a >> _WORD ^ c3 ^ k1, a & _LOW_WORD
        k0, k1 = k0 + _KEY_STEPS[0] & _LOW_WORD, k1 + _KEY_STEPS[1] & _LOW_WORD
    return np.float32(np.int64(min(c0, _LOW_WORD - c0))) * _UNIT
