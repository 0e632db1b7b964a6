"""Compiled loops for convolutions with few rows (numba): weights packed once, read once, in order.

Where a GEMM has little to do, as at batch 1, its time is that of reading the weights and of being called, and one that
packs them anew at every call reads and writes them more than once. Here they are packed for VNNI, whose instruction
adds to 16 sums the products of four unsigned bytes each with the same four signed ones: weights, made unsigned by 128,
and codes. What that adds, 128 times the sum of a row's codes, is taken off again.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

from octo_exp.kernels.cpu.compiled import INNER, OUTER, njit, prange
from octo_exp.kernels.cpu.fixed_loops import requantize_row
from octo_exp.kernels.cpu.loops import columns_of_input
from octo_exp.kernels.cpu.vectors import INTS, LANES, call, code, place, spread, spread_value, store

# Rows, or else multiply-adds, up to which it is faster than oneDNN's GEMM: measured beside AMX.
MAX_ROWS = 16
MAX_MACS = 2**25
# Codes that one instruction takes of a row, and outputs of a block: two vectors share what is read of the rows.
WORD = 4
BLOCK = 2 * LANES
# Rows whose sums exist at a time: they stay in the first cache.
ROWS = 64


@cache
def is_available() -> bool:
    """Whether this CPU has the instruction, and numba compiles for it: NUMBA_CPU_NAME may name another."""
    compiled_for = config.CPU_NAME or binding.get_host_cpu_name()
    return compiled_for == binding.get_host_cpu_name() and bool(binding.get_host_cpu_features().get("avx512vnni"))


def packed(weights: np.ndarray) -> np.ndarray:
    """weights [O, K] int8 -> [ceil(O/32), ceil(K/4), 32, 4] uint8: weight + 128; absent ones are 0 and add nothing."""
    outputs, k = weights.shape
    blocks, words = -(-outputs // BLOCK), -(-k // WORD)
    whole = np.zeros((blocks * BLOCK, words * WORD), np.uint8)
    whole[:outputs, :k] = weights.view(np.uint8) ^ 128
    return np.ascontiguousarray(whole.reshape(blocks, BLOCK, words, WORD).transpose(0, 2, 1, 3))


@intrinsic
def _dot(typingctx: Any, sums: Any, weights: Any, w_at: Any, codes: Any, at: Any) -> Any:
    """sums + products of weights[w_at : w_at + 64] (uint8) and codes[at : at + 4] (int8), four to a sum."""

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
        def read(array: Any, values: Any, kind: ir.Type) -> ir.Value:
            at = place(context, builder, array, values)
            return builder.load(builder.bitcast(at, kind.as_pointer()), align=1)

        four = spread_value(builder, read(codes, values[3:], ir.IntType(32)))
        return call(builder, "x86.avx512.vpdpbusd.512", values[0], read(weights, values[1:], four.type), four)

    return code(INTS, (INTS, weights, types.intp, codes, types.intp), make)


@njit(**INNER)
def _row_sums(rows, out):
    for m in range(rows.shape[0]):
        total = np.int32(0)
        for k in range(rows.shape[1]):
            total += rows[m, k]
        out[m] = total


@njit(**INNER)
def _four_rows(rows, at, k, weights, acc, to):
    # rows[at :], four of length k, weights [K/4 * 128] -> acc[to :], four of 32.
    a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = spread(np.int32(0))
    for i in range(0, k, WORD):
        w, x = i * BLOCK, at + i
        a0, a1 = _dot(a0, weights, w, rows, x), _dot(a1, weights, w + 64, rows, x)
        b0, b1 = _dot(b0, weights, w, rows, x + k), _dot(b1, weights, w + 64, rows, x + k)
        c0, c1 = _dot(c0, weights, w, rows, x + 2 * k), _dot(c1, weights, w + 64, rows, x + 2 * k)
        d0, d1 = _dot(d0, weights, w, rows, x + 3 * k), _dot(d1, weights, w + 64, rows, x + 3 * k)
    for j, v in enumerate((a0, a1, b0, b1, c0, c1, d0, d1)):
        store(acc, to + j * LANES, LANES, v)


@njit(**INNER)
def _one_row(rows, at, k, weights, acc, to):
    a0 = a1 = spread(np.int32(0))
    for i in range(0, k, WORD):
        w = i * BLOCK
        a0, a1 = _dot(a0, weights, w, rows, at + i), _dot(a1, weights, w + 64, rows, at + i)
    store(acc, to, LANES, a0)
    store(acc, to + LANES, LANES, a1)


@njit(**INNER)
def _sums(rows, start, end, k, weights, acc):
    # Those of rows[start * k : end * k] with a block's weights.
    whole = start + (end - start) // 4 * 4
    for m in range(start, whole, 4):
        _four_rows(rows, m * k, k, weights, acc, (m - start) * BLOCK)
    for m in range(whole, end):
        _one_row(rows, m * k, k, weights, acc, (m - start) * BLOCK)


@njit(**OUTER)
def gemm(rows, k, weights, offset, value, shift, zero, out):
    """rows [M * K] int8 and three bytes more where K is no multiple of 4, weights of `packed` -> out [M, O] int8.

    Sums, then as `loops.requantize`.
    """
    count, outputs = out.shape
    sums = np.empty(count, np.int32)
    _row_sums(rows[: count * k].reshape(count, k), sums)
    for block in prange(weights.shape[0]):
        acc, w = np.empty(ROWS * BLOCK, np.int32), weights[block].reshape(-1)
        first = block * BLOCK
        part = slice(first, min(outputs, first + BLOCK))
        for start in range(0, count, ROWS):
            end = min(count, start + ROWS)
            _sums(rows, start, end, k, w, acc)
            for m in range(start, end):
                at = (m - start) * BLOCK
                made = acc[at : at + part.stop - first]
                for o in range(made.size):
                    made[o] -= 128 * sums[m]
                requantize_row(made, offset[part], value[part], shift[part], zero, out[m, part])


@njit(**INNER)
def conv(x, weights, kernel, stride, padding, x_zero, offset, value, shift, y_zero, room, out):
    """x [N, H, W, C] int8, weights of `packed` -> out [N, OH, OW, O]: im2col, its border x_zero, then `gemm`.

    room: N * OH * OW * KH * KW * C + WORD bytes of any content; fresh ones would cost their pages.
    """
    (n, height, width, channels), (_, oh, ow, outputs) = x.shape, out.shape
    count, k = n * oh * ow, kernel[0] * kernel[1] * channels
    rows, size = room[: count * k + WORD], (height, width)
    columns = rows[: count * k].reshape(count, k)
    columns_of_input(x.reshape(n, -1), columns, kernel, stride, padding, (1, 1), size, (oh, ow), np.int8(x_zero))
    gemm(rows, k, weights, offset, value, shift, y_zero, out.reshape(count, outputs))
