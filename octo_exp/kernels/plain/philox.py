"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): noise that a counter names.

Element i of a tensor draws from (seed, i) alone, so every implementation and device draws the same, in any order,
inside its own loop, and no generator has a state. Triton's `tl.philox` and the CPU's compiled loops give the same bits.
"""

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
# What the two words of the key grow by after each round.
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW_WORD = 2**32 - 1
# The largest float32 that keeps 2^31 * UNIT below 1: (1 - 2^-24) / 2^31.
UNIT = (1 - 2**-24) / 2**31
# Counters at a time: int64 temporaries of 32 MiB.
CHUNK = 2**22

Words = tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four 32-bit words and a key of two -> four random words; words are int64 tensors or ints in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # A product past 2^63 wraps, and its bits are still those of the unsigned one.
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = (b >> 32 & LOW_WORD) ^ c1 ^ k0, (a >> 32 & LOW_WORD) ^ c3 ^ k1
        c1, c3 = b & LOW_WORD, a & LOW_WORD
        k0, k1 = k0 + KEY_STEPS[0] & LOW_WORD, k1 + KEY_STEPS[1] & LOW_WORD
    return c0, c1, c2, c3


def uniform(seed: int, count: int, device: torch.device | str, start: int = 0) -> Tensor:
    """Noise of the counters start to start + count - 1: float32 [count] in [0, 1), 2^31 values; seed of 0 to 63 bits.

    The first of the four words, folded to 31 bits (w, or 2^32 - 1 - w from 2^31 on), times `UNIT`.
    """
    key = (seed & LOW_WORD, seed >> 32)
    out = torch.empty(count, device=device)
    for first, part in zip(range(start, start + count, CHUNK), torch.split(out, CHUNK), strict=False):
        i = torch.arange(first, first + part.numel(), device=device)
        word = torch.as_tensor(philox((i & LOW_WORD, i >> 32, 0, 0), key)[0])
        part.copy_(torch.minimum(word, LOW_WORD - word)).mul_(UNIT)
    return out
