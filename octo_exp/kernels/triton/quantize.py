"""Quantisation in Triton, one pass over memory: clip, scale, round to nearest even or with noise drawn here."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octo_exp.kernels.finish import Limits
from octo_exp.kernels.triton.gemm import BLOCK


@triton.jit
def uniform(seed, i):
    """Noise of the counters i, a block of int64: see `philox.uniform`."""
    low, high = i.to(tl.uint32), (i >> 32).to(tl.uint32)
    # The words themselves: how `tl.rand` splits a 64-bit counter depends on Triton's version.
    word, _, _, _ = tl.philox(seed, low, high, low * 0, low * 0)
    return tl.uint_to_uniform_float(word)


@triton.jit
def round_to_even(v):
    """Nearest integer, ties to even, for |v| up to 2^22; what is beyond stays beyond every code."""
    # Between 2^23 and 2^24 a float32 has no fraction, so the addition itself rounds.
    return (v + 12582912.0) - 12582912.0


@triton.jit(do_not_specialize=["seed"])
def _quantize(
    t_ptr,
    out_ptr,
    scale_ptr,
    zero_ptr,
    low_ptr,
    high_ptr,
    seed,
    count,
    row_length,
    NOISY: tl.constexpr,
    ROWS: tl.constexpr,
    Q_MIN: tl.constexpr,
    Q_MAX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    v = tl.load(t_ptr + i, mask=inside, other=0.0)
    if low_ptr is not None:
        low = tl.load(low_ptr)
        v = tl.where(v < low, low, v)
    if high_ptr is not None:
        high = tl.load(high_ptr)
        v = tl.where(v > high, high, v)
    # The plain division is an approximation on a GPU.
    if ROWS:
        v = tl.div_rn(v, tl.load(scale_ptr + i // row_length, mask=inside, other=1.0))
    else:
        v = tl.div_rn(v, tl.load(scale_ptr))
    q = tl.floor(v + uniform(seed, i)) if NOISY else round_to_even(v)
    q += tl.load(zero_ptr).to(tl.float32)
    q = tl.where(q < Q_MIN, Q_MIN, tl.where(q > Q_MAX, Q_MAX, q))
    tl.store(out_ptr + i, q.to(tl.int8), mask=inside)


def quantize_dense(t: Tensor, scale: Tensor, zero_point: Tensor, limits: Limits) -> Tensor:
    """See `Backend.quantize`, for a dense float32 t; scale is a scalar or one a row."""
    out, rows, (q_min, q_max, low, high, seed) = torch.empty_like(t, dtype=torch.int8), scale.dim() > 0, limits
    grid = (triton.cdiv(t.numel(), BLOCK),)
    low, high = (None if v is None else v.float() for v in (low, high))
    row_length = t.numel() // max(1, t.shape[0]) if rows else 1
    tensors = (t, out, scale.float().contiguous(), zero_point, low, high)
    options = {"NOISY": seed is not None, "ROWS": rows, "Q_MIN": q_min, "Q_MAX": q_max, "BLOCK": BLOCK}
    _quantize[grid](*tensors, seed or 0, t.numel(), row_length, **options, enable_fp_fusion=False)
    return out
