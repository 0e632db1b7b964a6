"""Bytes between on-chip and off-chip memory, and the cycles that a unit waits for them.

Each operand has its own on-chip memory, half of which computes while the other half is filled. An operand that fits a
half is read once. One that does not is read again for every fold it meets, unless the loops around the folds keep what
consecutive folds share, or take the streamed extent T in pieces that fit; of the loop orders below the one of fewest
bytes is taken. With A, B, O the bytes of operand a, operand b and the result, ha, hb, ho the halves, Fr and Fc the
folds along rows and columns, r and c the shares of a whole fold, min(R, Sr) / Sr and min(C, Sc) / Sc:

    os, rows outer   A (or Fc A unless r A <= ha);  B (or Fr B unless B <= hb);  O
    os, cols outer   A (or Fc A unless A <= ha);  B (or Fr B unless c B <= hb);  O
    os, K in pieces  A;  B (or Fr B unless B <= hb);  O, and partial sums P - 1 times unless r O <= ho;  r A <= P ha
    os, K in pieces  A (or Fc A unless A <= ha);  B;  O, and partial sums P - 1 times unless c O <= ho;  c B <= P hb
    os, K outer      A;  B;  O, and partial sums P - 1 times unless O <= ho;  B <= P hb and r A <= P ha,
                     or A <= P ha and c B <= P hb
    ws, cols outer   A (or Fc A unless A <= ha);  B;  O, and partial sums Fr - 1 times unless c O <= ho
    ws, rows outer   A (or Fc A unless r A <= ha);  B;  O, and partial sums Fr - 1 times unless O <= ho
    ws, M outer      A (or Fc A unless A <= P ha);  B (or P B unless B <= hb);  O;  P pieces with c O <= P ho, and with
                     A <= P ha as well
    is               as ws, with a and b, M and N changed over

A partial sum that does not stay on chip is written and read back. Pieces of T are taken to follow each other without
another fill of the array. A vector unit of so many lanes counts as os on one row of PEs. The unit waits for the first
fold's operands and at the end for the last fold's results; in between, transfers and computation overlap. With F folds,
D bytes in all, W bytes a cycle and t compute cycles:

    stall = D / (F W) + max(0, D (1 - 1/F) / W - t) = max(D / (F W), D / W - t)

which is 0 without a limit to the bandwidth, and falls with W and with every memory; a half holds whole bytes. Cycles
and bytes are exact below 2**53, beyond which they are refused. The model is this project's own.
In the convention "scalesim" the words are those of that simulator with bandwidth computed: every element once, the
results of ws and is Fr times, and nothing waits.
"""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octo_exp.hw.columns import GemmArrays
from octo_exp.hw.cycles import GemmCost
from octo_exp.hw.exact import LIMIT, ceil_quotient, ceil_ratio, check, product
from octo_exp.hw.machines import Machines

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_BYTES = "bytes from and to off-chip memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes from and to off-chip memory, of one product (not of all `count`), each [P, L]."""

    ifmap_reads: IntArray
    filter_reads: IntArray
    ofmap_reads: IntArray
    ofmap_writes: IntArray

    @property
    def total(self) -> IntArray:
        """Bytes of all operands."""
        return self.ifmap_reads + self.filter_reads + self.ofmap_reads + self.ofmap_writes

    @classmethod
    def where(cls, condition: NDArray[np.bool_], yes: "Traffic", no: "Traffic") -> "Traffic":
        """Return `yes` where the condition holds, else `no`."""
        return cls(**{f.name: np.where(condition, getattr(yes, f.name), getattr(no, f.name)) for f in fields(cls)})

    def times(self, count: IntArray) -> "Traffic":
        """Return the bytes of `count` such products; `UserError` from 2**53 on."""
        if (count == 1).all():
            return self
        product(_BYTES, "batch_size", self.total, count)
        return Traffic(**{f.name: getattr(self, f.name) * count for f in fields(self)})


class _Share(NamedTuple):
    """The share of a whole fold; a pair, because a rounded quotient would not fit where the true one just does."""

    taken: FloatArray
    extent: FloatArray

    @classmethod
    def of(cls, side: IntArray, extent: FloatArray) -> "_Share":
        """Return the share that one side of the array takes of an extent."""
        return cls(np.minimum(side.astype(np.float64), extent), extent)


class _Operand(NamedTuple):
    """Bytes of an operand or of the result, and of the half of its memory: whole numbers, as floats for their speed."""

    size: FloatArray
    half: FloatArray

    def part(self, share: _Share) -> FloatArray:
        """Bytes of this share of it, the last one whole; a fraction of a byte fits where the whole one does."""
        if np.max(self.size) * np.max(share.taken) < LIMIT:
            return ceil_ratio(self.size * share.taken, share.extent)
        # size * taken / extent, in parts that cannot wrap.
        size, taken, extent = (item.astype(np.int64) for item in (self.size, *share))
        whole, rest = np.divmod(size, extent)
        return np.asarray(whole * taken - (-(rest * taken) // extent), np.float64)

    def fits(self, part: FloatArray | None = None) -> Any:
        """Whether it fits, or a part of so many bytes."""
        return (self.size if part is None else part) <= self.half

    def pieces(self, part: FloatArray | None = None) -> Any:
        """The least number of equal pieces, at least one, of it or a part of so many bytes that fit one at a time."""
        return np.maximum(ceil_ratio(self.size if part is None else part, self.half), 1)


class _Layout(NamedTuple):
    """Folds along rows and columns, the share of a whole one, and the streamed extent."""

    row_folds: FloatArray
    col_folds: FloatArray
    row_share: _Share
    col_share: _Share
    temporal: FloatArray


class _Moves(NamedTuple):
    """How often each operand is read, and how often partial sums go out and come back; infinite: impossible."""

    a: Any
    b: Any
    spills: Any


def dram_traffic(gemms: GemmArrays, machines: Machines, cost: GemmCost, *, convention: str) -> Traffic:
    """Bytes of each GEMM on each machine's array, laid out as `cost` says."""
    if convention == "scalesim":
        results = np.where(cost.dataflow == 0, 1, cost.row_folds) * (gemms.m * gemms.n)
        once = (np.broadcast_to(elements, results.shape) for elements in (gemms.elements_a, gemms.elements_b))
        ifmap, filters = once
        return Traffic(
            ifmap_reads=ifmap, filter_reads=filters, ofmap_reads=np.zeros_like(results), ofmap_writes=results
        )
    if not cost.cycles.size:
        return Traffic(**{item.name: np.zeros(cost.cycles.shape, np.int64) for item in fields(Traffic)})
    by_output, by_input = cost.dataflow == 0, cost.dataflow == 2
    m, n, k = (extent.astype(np.float64) for extent in (gemms.m, gemms.n, gemms.k))
    layout = _Layout(
        row_folds=cost.row_folds.astype(np.float64),
        col_folds=cost.col_folds.astype(np.float64),
        row_share=_Share.of(machines.rows, np.where(by_output, m, k)),
        col_share=_Share.of(machines.cols, np.where(by_input, m, n)),
        temporal=np.where(by_output, k, np.where(by_input, n, m)),
    )
    a, b, out = _operands(gemms, machines)
    moves = []
    if by_output.any():
        moves.append((by_output, _output_stationary(a, b, out, layout)))
    if not (by_output | by_input).all():
        moves.append((~(by_output | by_input), _held(a, b, out, layout)))
    if by_input.any():
        changed = _held(b, a, out, layout)
        moves.append((by_input, _Moves(a=changed.b, b=changed.a, spills=changed.spills)))
    return _bytes(gemms, (a, b, out), _chosen(moves))


def vector_traffic(gemms: GemmArrays, machines: Machines) -> Traffic:
    """Bytes of each GEMM on each machine's vector unit."""
    lanes = machines.lanes
    m, n, k = (extent.astype(np.float64) for extent in (gemms.m, gemms.n, gemms.k))
    layout = _Layout(
        row_folds=m,
        col_folds=ceil_ratio(n, lanes),
        row_share=_Share.of(np.ones_like(lanes), m),
        col_share=_Share.of(lanes, n),
        temporal=k,
    )
    operands = _operands(gemms, machines)
    return _bytes(gemms, operands, _output_stationary(*operands, layout))


def stall_cycles(compute: IntArray, traffic: IntArray, folds: IntArray, bytes_per_cycle: FloatArray) -> IntArray:
    """Cycles that a unit waits in `compute` cycles of `folds` folds that move `traffic` bytes; arrays broadcast."""
    transfer = ceil_quotient(traffic, bytes_per_cycle, "cycles", "dram_bytes_per_cycle")
    # The least whole number that is not below the model's real one: ceil(D / (F W)) = ceil(ceil(D / W) / F).
    waiting: IntArray = np.maximum(ceil_ratio(transfer, folds).astype(np.int64), transfer - compute)
    return waiting


def _operands(gemms: GemmArrays, machines: Machines) -> tuple[_Operand, _Operand, _Operand]:
    """a, b and the result with its partial sums."""
    sizes = {
        "ifmap": gemms.elements_a * gemms.bytes_a,
        "filter": gemms.elements_b * gemms.bytes_b,
        "ofmap": gemms.m * gemms.n * gemms.bytes_out,
    }
    # Each is moved as a whole; as floats they are exact where they are not refused.
    for size in sizes.values():
        check(size, _BYTES, "batch_size")
    a, b, out = (
        _Operand(size.astype(np.float64), machines.half_bytes(name).astype(np.float64)) for name, size in sizes.items()
    )
    return a, b, out


def _output_stationary(a: _Operand, b: _Operand, out: _Operand, at: _Layout) -> _Moves:
    """The best loop order of os."""
    strip_a, strip_b = a.part(at.row_share), b.part(at.col_share)
    strips_a, strips_b = a.pieces(strip_a), b.pieces(strip_b)
    again_a, again_b = np.where(a.fits(), 1, at.col_folds), np.where(b.fits(), 1, at.row_folds)
    # The inner loop's operand is kept whole, piece by piece, the outer one's strip by strip.
    pieces = np.minimum(np.maximum(b.pieces(), strips_a), np.maximum(a.pieces(), strips_b))
    orders = (
        _Moves(np.where(a.fits(strip_a), 1, at.col_folds), again_b, 0),
        _Moves(again_a, np.where(b.fits(strip_b), 1, at.row_folds), 0),
        _Moves(1, again_b, _leaving(out.fits(out.part(at.row_share)), strips_a, at)),
        _Moves(again_a, 1, _leaving(out.fits(out.part(at.col_share)), strips_b, at)),
        _Moves(1, 1, _leaving(out.fits(), pieces, at)),
    )
    return _fewest(orders, a, b, out)


def _leaving(fits: Any, pieces: Any, at: _Layout) -> Any:
    """How often partial sums leave between so many pieces of T, of a line at least; never where they fit."""
    return np.where(pieces <= at.temporal, np.where(fits, 0, pieces - 1), np.inf)


def _held(a: _Operand, b: _Operand, out: _Operand, at: _Layout) -> _Moves:
    """The best loop order where b stays in the PEs and a streams: ws."""
    folds_a, folds_out = at.col_folds, at.row_folds - 1
    strip_a, strip_out = a.part(at.row_share), out.part(at.col_share)
    cols_outer = _Moves(np.where(a.fits(), 1, folds_a), 1, np.where(out.fits(strip_out), 0, folds_out))
    rows_outer = _Moves(np.where(a.fits(strip_a), 1, folds_a), 1, np.where(out.fits(), 0, folds_out))
    for_out = out.pieces(strip_out)
    for_both = np.maximum(for_out, a.pieces())
    few = _Moves(folds_a, _readings(b, for_out, at), 0)
    many = _Moves(1, _readings(b, for_both, at), 0)
    return _fewest((cols_outer, rows_outer, few, many), a, b, out)


def _readings(held: _Operand, pieces: Any, at: _Layout) -> Any:
    """How often the operand in the PEs is read if T is taken in so many pieces, of a line at least."""
    return np.where(pieces <= at.temporal, np.where(held.fits(), 1, pieces), np.inf)


def _fewest(orders: tuple[_Moves, ...], a: _Operand, b: _Operand, out: _Operand) -> _Moves:
    """For each GEMM and machine the order of fewest bytes."""
    best, least = orders[0], _moved(orders[0], a, b, out)
    for order in orders[1:]:
        total = _moved(order, a, b, out)
        fewer = total < least
        best = _selected(fewer, order, best)
        least = np.minimum(total, least)
    return best


def _moved(order: _Moves, a: _Operand, b: _Operand, out: _Operand) -> Any:
    return order.a * a.size + order.b * b.size + 2 * order.spills * out.size


def _chosen(moves: list[tuple[NDArray[np.bool_], _Moves]]) -> _Moves:
    """Each GEMM's and machine's own dataflow."""
    _, found = moves[0]
    for condition, other in moves[1:]:
        found = _selected(condition, other, found)
    return found


def _selected(condition: NDArray[np.bool_], yes: _Moves, no: _Moves) -> _Moves:
    """`yes` where the condition holds, else `no`; what both have in common, as one object, stays as it is."""
    return _Moves(*(old if new is old else np.where(condition, new, old) for new, old in zip(yes, no, strict=True)))


def _bytes(gemms: GemmArrays, operands: tuple[_Operand, _Operand, _Operand], moves: _Moves) -> Traffic:
    """Bytes of so many readings; what leaves at the end may be less than the partial sums were."""
    a, b, sums = (times * operand.size for times, operand in zip(moves, operands, strict=True))
    results = (gemms.elements_out * gemms.bytes_out).astype(np.float64)
    check(np.asarray(a + b + 2 * sums + results), _BYTES, "batch_size, or the sizes of the memories")
    shape = np.broadcast_shapes(*(np.shape(times) for times in moves), gemms.m.shape)

    def whole(values: Any) -> IntArray:
        return np.broadcast_to(np.asarray(values).astype(np.int64), shape)

    return Traffic(
        ifmap_reads=whole(a),
        filter_reads=whole(b),
        ofmap_reads=whole(sums),
        ofmap_writes=whole(sums + results),
    )
