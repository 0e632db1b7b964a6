"""int8 GEMM in Triton with an optional scaled epilogue; imported only when `kernel=triton` is asked for.

Runs on CUDA devices, and on CPU tensors when TRITON_INTERPRET=1 is set before Triton is imported (bit-exact, for
tests of small shapes).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_M, BLOCK_N, BLOCK_K = 32, 32, 32


@triton.jit
def _gemm(
    a_ptr,
    b_ptr,
    out_ptr,
    scale_ptr,
    offset_ptr,
    m,
    n,
    k,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    SCALED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, k, BK):
        ks = start + tl.arange(0, BK)
        a_mask = (rows[:, None] < m) & (ks[None, :] < k)
        b_mask = (ks[:, None] < k) & (columns[None, :] < n)
        a = tl.load(a_ptr + rows[:, None] * stride_am + ks[None, :] * stride_ak, mask=a_mask, other=0)
        b = tl.load(b_ptr + ks[:, None] * stride_bk + columns[None, :] * stride_bn, mask=b_mask, other=0)
        acc += tl.dot(a, b, out_dtype=tl.int32)
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    target = out_ptr + rows[:, None] * n + columns[None, :]
    if SCALED:
        scale = tl.load(scale_ptr + columns, mask=columns < n, other=0.0)
        offset = tl.load(offset_ptr + columns, mask=columns < n, other=0.0)
        tl.store(target, acc.to(tl.float32) * scale[None, :] + offset[None, :], mask=mask)
    else:
        tl.store(target, acc, mask=mask)


def _launch(a: Tensor, b: Tensor, out: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    (m, k), n = a.shape, b.shape[1]
    grid = (triton.cdiv(m, BLOCK_M), triton.cdiv(n, BLOCK_N))
    unused = out
    _gemm[grid](
        a,
        b,
        out,
        unused if scale is None else scale,
        unused if offset is None else offset,
        m,
        n,
        k,
        *a.stride(),
        *b.stride(),
        SCALED=scale is not None,
        BM=BLOCK_M,
        BN=BLOCK_N,
        BK=BLOCK_K,
    )
    return out


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """[M, K] int8, [K, N] int8 -> [M, N] int32. The caller keeps K small enough for int32 sums."""
    return _launch(a, b, torch.empty((a.shape[0], b.shape[1]), dtype=torch.int32, device=a.device), None, None)


def matmul_scaled(a: Tensor, b: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """[M, K] int8, [K, N] int8, scale [N], offset [N] float32 -> (a @ b) * scale + offset, [M, N] float32."""
    out = torch.empty((a.shape[0], b.shape[1]), dtype=torch.float32, device=a.device)
    return _launch(a, b, out, scale.contiguous(), offset.contiguous())
