"""int8 GEMM in Triton with a scaled epilogue; imported only when `kernel=triton` is asked for.

Runs on CUDA devices, and on CPU tensors when TRITON_INTERPRET=1 is set before Triton is imported (bit-exact, for
tests of small shapes).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octo_exp.kernels.finish import Finish
from octo_exp.kernels.triton.autotune import Blocks, choose

# Elements a program of an elementwise kernel.
BLOCK = 1024


@triton.jit
def store_finished(
    acc, rows, columns, m, n, out_ptr, scale_ptr, scale_stride, offset_ptr, offset_rows, RELU: tl.constexpr
):
    """acc, a tile [BM, BN] int32 -> out [m, n]: as it is if scale_ptr is None, else acc*scale + offset, float32.

    scale [n] (a scalar if scale_stride is 0); offset [offset_rows, n], row r takes r mod offset_rows, or None.
    """
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    target = out_ptr + rows[:, None].to(tl.int64) * n + columns[None, :]
    if scale_ptr is None:
        tl.store(target, acc, mask=mask)
    else:
        scale = tl.load(scale_ptr + columns * scale_stride, mask=columns < n, other=0.0)
        y = acc.to(tl.float32) * scale[None, :]
        if offset_ptr is not None:
            place = (rows % offset_rows)[:, None] * n + columns[None, :]
            y += tl.load(offset_ptr + place, mask=mask, other=0.0)
        if RELU:
            # A NaN passes, as it does in torch.
            y = tl.where(y < 0.0, 0.0, y)
        tl.store(target, y, mask=mask)


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
    scale_stride,
    offset_rows,
    RELU: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    # Neighbors share their rows of a, the longer operand.
    tiles = tl.cdiv(n, BN)
    rows = tl.program_id(0) // tiles * BM + tl.arange(0, BM)
    columns = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    a_rows = a_ptr + rows[:, None].to(tl.int64) * stride_am
    b_columns = b_ptr + columns[None, :].to(tl.int64) * stride_bn
    acc = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, k, BK):
        ks = (start + tl.arange(0, BK)).to(tl.int64)
        a = tl.load(a_rows + ks[None, :] * stride_ak, mask=(rows[:, None] < m) & (ks[None, :] < k), other=0)
        b = tl.load(b_columns + ks[:, None] * stride_bk, mask=(ks[:, None] < k) & (columns[None, :] < n), other=0)
        acc = tl.dot(a, b, acc, out_dtype=tl.int32)
    store_finished(acc, rows, columns, m, n, out_ptr, scale_ptr, scale_stride, offset_ptr, offset_rows, RELU)


def epilogue_arguments(finish: Finish | None, columns: int) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Scale scalar or [N], offset [N], [P, N], [N, H, W] or None -> (scale, offset, scale_stride, offset_rows)."""
    if finish is None:
        return None, None, 0, 1
    scale, offset = finish.scale.float().contiguous(), finish.offset
    if offset is not None:
        offset = offset.permute(1, 2, 0) if offset.dim() == 3 else offset
        offset = offset.float().reshape(-1, columns).contiguous()
    return scale, offset, int(scale.numel() > 1), 1 if offset is None else offset.shape[0]


def multiply(a: Tensor, b: Tensor, finish: Finish | None = None) -> Tensor:
    """[M, K], [K, N] int8, scale scalar or [N], offset [N], [P, N] or None -> a@b*scale + offset, [M, N] float32.

    ReLU is done where it is all that follows. Without `finish` the sums, int32: the caller keeps K small enough.
    """
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=torch.int32 if finish is None else torch.float32, device=a.device)
    scale, offset, scale_stride, offset_rows = epilogue_arguments(finish, n)
    relu = finish is not None and finish.is_relu
    sizes = (m, n, k, *a.stride(), *b.stride(), scale_stride, offset_rows)

    def run(blocks: Blocks) -> None:
        tile = {"BM": blocks.m, "BN": blocks.n, "BK": blocks.k}
        grid = (triton.cdiv(m, blocks.m) * triton.cdiv(n, blocks.n),)
        _gemm[grid](a, b, out, scale, offset, *sizes, RELU=relu, **tile, **blocks.launch_options())

    # Rows in powers of two: the last, smaller batch of an epoch is not timed again.
    layout = (int(a.stride(1) == 1), int(b.stride(0) == 1))
    run(choose("gemm", (triton.next_power_of_2(m), n, k, *layout), a.device, run))
    return out


@triton.jit
def _scale_rows(acc_ptr, out_ptr, scale_ptr, offset_ptr, count, row_length, scale_stride, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, row = i < count, i // row_length
    y = tl.load(acc_ptr + i, mask=inside).to(tl.float32) * tl.load(scale_ptr + row * scale_stride, mask=inside)
    if offset_ptr is not None:
        y += tl.load(offset_ptr + row, mask=inside)
    tl.store(out_ptr + i, y, mask=inside)


def scale_rows(acc: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """acc [R, K] int32, scale scalar or [R], offset [R] or None -> acc*scale + offset, a row each, float32."""
    acc = acc.contiguous()
    scales, offsets, scale_stride, _ = epilogue_arguments(Finish(scale, offset), acc.shape[0])
    out = torch.empty(acc.shape, dtype=torch.float32, device=acc.device)
    grid = (triton.cdiv(acc.numel(), BLOCK),)
    _scale_rows[grid](
        acc, out, scales, offsets, acc.numel(), acc.shape[1], scale_stride, BLOCK=BLOCK, enable_fp_fusion=False
    )
    return out
