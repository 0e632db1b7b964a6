"""Tiles of a GEMM for x86 without an int8 instruction (numba): codes widened to 16 bits, multiplied by `vpmaddwd`.

The instruction multiplies 16-bit numbers and adds them two by two into 32 bits, exactly: twice the products of a
float32 instruction, for twice the bytes of int8. A tile of ROWS x 16 sums stays in registers while K goes by; what it
reads lies packed in the nearest caches: blocks of the left operand's rows, panels of the right one's columns.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from octo_exp.kernels.cpu.compiled import INNER, njit
from octo_exp.kernels.cpu.vectors import LANES, code, load, place, store, vector

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
# Rows of a tile: with a panel's 16 columns 12 of the 16 registers hold sums.
ROWS = 6
# Codes of K a block and a panel, rows a block, columns a block: 16 KiB a panel, 96 KiB a block.
DEPTH, BLOCK_ROWS, BLOCK_COLUMNS = 512, 96, 256
# Panels that are packed together: a cache line of the rows that they are read from.
GROUP = 4
# 16-bit numbers of a panel that stand beside each other: 16 columns, two codes each.
PANEL = 2 * LANES


# Processors with the instruction of 32 bytes that NUMBA_CPU_NAME may name; of others nothing is known.
_NAMED = ("haswell", "broadwell", "skylake", "znver1", "znver2", "znver3")


def _bytes_at_once() -> int:
    """Of the instruction, where numba compiles for an x86 processor that has it: 64, 32 or 0."""
    if not binding.get_default_triple().startswith("x86_64") or config.CPU_FEATURES:
        return 0
    name = config.CPU_NAME or binding.get_host_cpu_name()
    if name != binding.get_host_cpu_name():
        return 32 if name in _NAMED and binding.get_host_cpu_features().get("avx2") else 0
    known = binding.get_host_cpu_features()
    return 64 if known.get("avx512bw") else 32 if known.get("avx2") else 0


@cache
def is_available() -> bool:
    """Whether this CPU has the instruction, and numba compiles for it."""
    return _bytes_at_once() > 0


class _Instruction:
    """Of 16-bit pairs: how a vector of sums takes up the products of as many columns' two codes and of one row's."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        numbers = _bytes_at_once() // 2
        self.builder = builder
        self.sums, self.operand = ir.VectorType(_I32, numbers // 2), ir.VectorType(_I16, numbers)
        name = "llvm.x86.avx512.pmaddw.d.512" if numbers == PANEL else "llvm.x86.avx2.pmadd.wd"
        kind = ir.FunctionType(self.sums, [self.operand, self.operand])
        self.function = cgutils.get_or_insert_function(builder.module, kind, name)

    def row(self, codes: ir.Value) -> ir.Value:
        """Two codes at a pointer, as often as a vector holds them."""
        two = self.builder.load(self.builder.bitcast(codes, _I32.as_pointer()), align=2)
        empty = ir.Constant(self.sums, ir.Undefined)
        one = self.builder.insert_element(empty, two, ir.Constant(_I32, 0))
        every = self.builder.shuffle_vector(one, empty, ir.Constant(self.sums, [0] * self.sums.count))
        return self.builder.bitcast(every, self.operand)

    def columns(self, codes: ir.Value) -> list[ir.Value]:
        """Those of a panel, 16 of two codes each."""
        first = self.builder.bitcast(codes, self.operand.as_pointer())
        places = [self.builder.gep(first, [ir.Constant(_I32, i)]) for i in range(PANEL // self.operand.count)]
        return [self.builder.load(p, align=2) for p in places]

    def add(self, total: ir.Value, columns: ir.Value, row: ir.Value) -> ir.Value:
        """Total + the products."""
        return self.builder.add(total, self.builder.call(self.function, [columns, row]))


def _tile_of(row: int, pair: int) -> Any:
    """A tile for blocks that hold row i's codes of the p-th pair of K at i * row + p * pair."""

    @intrinsic
    def tile(typingctx: Any, block: Any, at: Any, panels: Any, start: Any, pairs: Any, sums: Any) -> Any:
        """Products of block[at:]'s six rows and panels[start:]'s 16 columns -> sums [96]; pairs: at least one."""

        def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
            use, codes, pairs = _Instruction(builder), _I16.as_pointer(), values[4]
            first = builder.bitcast(place(context, builder, block, values[:2]), codes)
            panel = builder.bitcast(place(context, builder, panels, values[2:]), codes)
            before, loop = builder.block, builder.append_basic_block("pairs")
            builder.branch(loop)
            builder.position_at_end(loop)

            def carried(start: ir.Value) -> ir.PhiInstr:
                phi = builder.phi(start.type)
                phi.add_incoming(start, before)
                return phi

            def ahead(pointer: ir.Value, by: int) -> ir.Value:
                return builder.gep(pointer, [ir.Constant(_I32, by)])

            left, rows, columns = carried(pairs), carried(first), carried(panel)
            totals = [carried(ir.Constant(use.sums, None)) for _ in range(ROWS * LANES // use.sums.count)]
            vectors, made = use.columns(columns), []
            for i in range(ROWS):
                codes_of_row = use.row(ahead(rows, i * row))
                of_row = totals[len(made) : len(made) + len(vectors)]
                made += [use.add(total, v, codes_of_row) for total, v in zip(of_row, vectors, strict=True)]
            left_then = builder.sub(left, ir.Constant(left.type, 1))
            then = [left_then, ahead(rows, pair), ahead(columns, PANEL), *made]
            for phi, value in zip([left, rows, columns, *totals], then, strict=True):
                phi.add_incoming(value, loop)
            done = builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed(">", left_then, ir.Constant(left.type, 0)), loop, done)
            builder.position_at_end(done)
            target = place(context, builder, sums, (values[5], ir.Constant(pairs.type, 0)))
            target = builder.bitcast(target, use.sums.as_pointer())
            for i, total in enumerate(made):
                builder.store(total, ahead(target, i), align=4)
            return context.get_dummy_value()

        return code(types.void, (block, types.intp, panels, types.intp, types.intp, sums), make)

    return tile


# Rows as they lie in memory, widened; and rows that lie across it, two codes of each together.
_tile_along, _tile_across = _tile_of(DEPTH, 2), _tile_of(2, 2 * BLOCK_ROWS)


@intrinsic
def _zip(typingctx: Any, out: Any, to: Any, codes: Any, at: Any, other: Any) -> Any:
    """out[to : to + 32] int16 = codes[at], codes[other], codes[at + 1], codes[other + 1], ... of int8."""
    sixteen = vector(_I8)
    order = ir.Constant(ir.VectorType(_I32, PANEL), [i // 2 + LANES * (i % 2) for i in range(PANEL)])

    def make(context: Any, builder: ir.IRBuilder, values: Any) -> ir.Value:
        places = [place(context, builder, codes, (values[2], start)) for start in values[3:]]
        pair = [builder.load(builder.bitcast(p, sixteen.as_pointer()), align=1) for p in places]
        wide = builder.sext(builder.shuffle_vector(*pair, order), ir.VectorType(_I16, PANEL))
        target = builder.bitcast(place(context, builder, out, values[:2]), wide.type.as_pointer())
        builder.store(wide, target, align=2)
        return context.get_dummy_value()

    return code(types.void, (out, types.intp, codes, types.intp, types.intp), make)


@njit(**INNER)
def _pack_across(t, at, step, depth, count, out, pair, panel):
    # t[at + k * step + j] of `depth` k and `count` j -> out[(j / 16) * panel + (k / 2) * pair + 2 * (j % 16) + k % 2].
    for k in range(0, depth, 2):
        top = at + k * step
        # An odd last k has a partner of zeros.
        lone = k + 1 == depth
        for j in range(0, count, LANES):
            to, n = (j // LANES) * panel + (k // 2) * pair, min(LANES, count - j)
            if n == LANES and not lone:
                _zip(out, to, t, top + j, top + step + j)
                continue
            for i in range(n):
                out[to + 2 * i] = t[top + j + i]
                out[to + 2 * i + 1] = 0 if lone else t[top + step + j + i]


@njit(**INNER)
def _pack_along(t, at, step, depth, count, out):
    # t[at + j * step + k] of `depth` k and `count` j -> out[(k / 2) * PANEL + 2 * j + k % 2].
    for j in range(count):
        row, to = t[at + j * step : at + j * step + depth], 2 * j
        for k in range(0, depth - 1, 2):
            out[to] = row[k]
            out[to + 1] = row[k + 1]
            to += PANEL
        # Its partner, whatever it is, meets a 0 of the other operand.
        if depth % 2:
            out[to] = row[depth - 1]


@njit(**INNER)
def _widen(t, at, step, depth, count, out):
    # t[at + j * step + k] of `depth` k and `count` j -> out[j * DEPTH + k], and one 0 after an odd number.
    for j in range(count):
        row, into = t[at + j * step : at + j * step + depth], out[j * DEPTH : j * DEPTH + depth]
        for k in range(depth):
            into[k] = row[k]
        if depth % 2:
            out[j * DEPTH + depth] = 0


@njit(**INNER)
def _add_tile(sums, out, to, step, rows, n, first):
    for i in range(rows):
        v = load(sums, i * LANES, LANES)
        store(out, to + i * step, n, v if first else v + load(out, to + i * step, n))


@njit(**INNER)
def split(m_all, n_all):
    """(groups of panels, blocks of rows and columns) of a product [M, N], which threads share."""
    down, across = (m_all + BLOCK_ROWS - 1) // BLOCK_ROWS, (n_all + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    return (n_all + GROUP * LANES - 1) // (GROUP * LANES), down * across


@njit(**INNER)
def pack(b, step, by_k, start, depth, n_all, group, packed):
    """`depth` rows of b [K, N] from `start` -> a group's panels packed[4 * group :], a row each."""
    first = group * GROUP
    if by_k:
        left = first * LANES
        count, into = min(GROUP * LANES, n_all - left), packed[first:].reshape(-1)
        _pack_across(b, start * step + left, step, depth, count, into, PANEL, packed.shape[1])
        return
    for p in range(first, first + GROUP):
        count = min(LANES, n_all - p * LANES)
        if count > 0:
            _pack_along(b, p * LANES * step + start, step, depth, count, packed[p])


@njit(**INNER)
def multiply(a, step, by_k, start, depth, m_all, n_all, item, packed, out):
    """`depth` columns of a [M, K] from `start`, times the panels -> added to a block of out [M * N], set from 0."""
    across = (n_all + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    top, left = item // across * BLOCK_ROWS, item % across * BLOCK_COLUMNS
    height, panels = min(BLOCK_ROWS, m_all - top), packed.reshape(-1)
    block, sums = np.empty(BLOCK_ROWS * DEPTH, np.int16), np.empty(ROWS * LANES, np.int32)
    if by_k:
        _pack_across(a, start * step + top, step, depth, height, block, 2 * BLOCK_ROWS, PANEL)
    else:
        _widen(a, top * step + start, step, depth, height, block)
    for column in range(left, min(n_all, left + BLOCK_COLUMNS), LANES):
        panel, n = column // LANES * packed.shape[1], min(LANES, n_all - column)
        for i in range(0, height, ROWS):
            if by_k:
                _tile_across(block, 2 * i, panels, panel, (depth + 1) // 2, sums)
            else:
                _tile_along(block, i * DEPTH, panels, panel, (depth + 1) // 2, sums)
            _add_tile(sums, out, (top + i) * n_all + column, n_all, min(ROWS, height - i), n, start == 0)
