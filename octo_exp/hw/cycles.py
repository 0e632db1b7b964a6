"""Exact compute cycles, utilization and SRAM traffic of a GEMM on a systolic array, in closed form.

A GEMM [M, K] x [K, N] is laid on an array of R rows and C columns. The dataflow says which operand stays in the
processing elements (PEs), hence which two extents are spatial (Sr down the rows, Sc along the columns) and which one
streams through time (T):

    dataflow  Sr  Sc  T   lines of one fold L
    os        M   N   K   T + R + C - 2
    ws        K   N   M   T + 2R + C - 2
    is        K   M   N   T + 2R + C - 2

    folds  = ceil(Sr / R) * ceil(Sc / C)
    cycles = folds * ceil(L / rate)           (convention "exact")
    cycles = folds * L - 1                    (convention "scalesim")

where `rate` is the MACs that a PE does in a cycle at the operands' width: 1 for int8, less for wider ones, for which
every line takes 1 / rate cycles.

Every fold pays the full fill and drain of R and C, and folds never overlap. The formulas reproduce SCALE-Sim 2.0.2 and
3.0.0 with bandwidth computed rather than limited (Samajdar et al., ISPASS 2020); its three habits are kept in the
convention "scalesim" alone: it reports the index of the last line instead of the number of lines, divides the compute
utilization of ws and is by C - 1 lines too many, and counts R + C ofmap writes per fold too many for os. It knows
neither operand widths nor that a partial sum is read before it is added to.

All functions are vectorized: extents, array sizes and dataflows broadcast against each other, and a scalar is an array
of shape (). Results are exact while m * n * k and the cycles are below 2**53, m, n, k <= 2**40 and rows, cols <= 2**16;
beyond, they refuse.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import shown
from octo_exp.hw.exact import LIMIT, ceil_quotient, ceil_ratio, product

DATAFLOWS = ("os", "ws", "is")
CONVENTIONS = ("exact", "scalesim")
# What a machine may be asked to do: one dataflow, or for each GEMM the one of fewest cycles, the first of equals (here
# compute cycles, in `price_gemms` cycles with stalls). GEMMs do not overlap: what is best for each is best for the sum.
CHOICES = (*DATAFLOWS, "per_gemm")

# Most PEs down and along an array.
ARRAY_LIMIT = 2**16

_EXTENT_LIMIT = 2**40
_CHECK_RATE = "bf16_macs_per_pe_cycle and fp32_macs_per_pe_cycle"
_CHECK_SIZE = "batch_size, or the rows of the topology"

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmCost:
    """Cost of GEMMs on arrays; every field has the broadcast shape of the arguments.

    Attributes:
        cycles: compute cycles, without stalls.
        overall_utilization: MACs / (cycles * R * C).
        mapping_utilization: share of the PEs that the folds occupy, Sr * Sc / (folds * R * C).
        compute_utilization: MACs / (lines * R * C), where the lines are those of all folds.
        dataflow: index into DATAFLOWS of the dataflow that was used.
        row_folds: ceil(Sr / R).
        col_folds: ceil(Sc / C).
        sram_ifmap_reads: words of operand a read from its SRAM.
        sram_filter_reads: words of operand b read from its SRAM.
        sram_ofmap_reads: words of partial sums read back from it, to be added to ("exact" alone).
        sram_ofmap_writes: words of the result written to its SRAM, partial sums of ws and is included.

    """

    cycles: IntArray
    overall_utilization: FloatArray
    mapping_utilization: FloatArray
    compute_utilization: FloatArray
    sram_ifmap_reads: IntArray
    sram_filter_reads: IntArray
    sram_ofmap_reads: IntArray
    sram_ofmap_writes: IntArray
    dataflow: IntArray
    row_folds: IntArray
    col_folds: IntArray


class _Problem(NamedTuple):
    m: IntArray
    n: IntArray
    k: IntArray
    rows: IntArray
    cols: IntArray


class _Folds(NamedTuple):
    """A problem laid out for one dataflow, which is an index into DATAFLOWS."""

    dataflow: IntArray
    spatial_rows: IntArray
    spatial_cols: IntArray
    temporal: IntArray
    row_folds: IntArray
    col_folds: IntArray
    lines: IntArray


def gemm_cycles(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    rows: ArrayLike,
    cols: ArrayLike,
    dataflow: ArrayLike,
    convention: str,
    rate: ArrayLike = 1.0,
) -> IntArray:
    """Compute cycles of [m, k] x [k, n] on rows x cols PEs; int64, of the arguments' broadcast shape.

    `dataflow` is one of CHOICES, or an index into it; `rate` (MACs a PE does in a cycle) counts in "exact" alone.

    Raises:
        UserError: an extent that is not a positive whole number or too large, an unknown dataflow or convention.

    """
    rates = _rates(rate, convention)
    folds = _fold(_problem(m, n, k, rows, cols), choice_codes(dataflow), rates)
    return _cycles(folds, _slowed(folds.lines, rates), convention)


def gemm_cost(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    rows: ArrayLike,
    cols: ArrayLike,
    dataflow: ArrayLike,
    convention: str,
    rate: ArrayLike = 1.0,
) -> GemmCost:
    """Cycles, utilization and SRAM traffic of [m, k] x [k, n] on rows x cols PEs; as in `gemm_cycles`."""
    rates = _rates(rate, convention)
    problem = _problem(m, n, k, rows, cols)
    folds = _fold(problem, choice_codes(dataflow), rates)
    lines = _slowed(folds.lines, rates)
    cycles = _cycles(folds, lines, convention)
    macs = problem.m * problem.n * problem.k
    elements = problem.rows * problem.cols
    mapping = folds.spatial_rows * folds.spatial_cols / (folds.row_folds * folds.col_folds * elements)
    charged = _charged_lines(problem, folds, lines, convention)
    ifmap, filters, ofmap_reads, ofmap_writes = _sram_words(problem, folds, convention)

    def whole(values: IntArray) -> IntArray:
        return np.broadcast_to(values, cycles.shape)

    return GemmCost(
        cycles=cycles,
        # One MAC on one PE takes 0 cycles by the convention "scalesim"; it keeps that PE busy all the same.
        overall_utilization=np.asarray(macs / (np.maximum(cycles, 1).astype(np.float64) * elements), np.float64),
        mapping_utilization=np.asarray(mapping, np.float64),
        compute_utilization=np.asarray(mapping * folds.temporal / charged),
        sram_ifmap_reads=whole(ifmap),
        sram_filter_reads=whole(filters),
        sram_ofmap_reads=whole(ofmap_reads),
        sram_ofmap_writes=whole(ofmap_writes),
        dataflow=whole(folds.dataflow),
        row_folds=whole(folds.row_folds),
        col_folds=whole(folds.col_folds),
    )


def choice_codes(dataflow: ArrayLike) -> IntArray:
    """Names out of CHOICES, or indices into it, as indices; int64 of the same shape."""
    array = np.asarray(dataflow)
    if array.dtype.kind in "iu":
        if array.size and not 0 <= array.min() <= array.max() < len(CHOICES):
            raise UserError(f"a dataflow's index must lie in 0..{len(CHOICES) - 1}, got {array.min()}..{array.max()}")
        return array.astype(np.int64)
    codes = np.full(array.shape, -1, np.int64)
    for code, name in enumerate(CHOICES):
        codes[array == name] = code
    if (codes < 0).any():
        wrong = str(array[codes < 0].flat[0])
        raise UserError(f"unknown dataflow {wrong!r}: choose one of {', '.join(CHOICES)}")
    return codes


def _rates(rate: ArrayLike, convention: str) -> FloatArray:
    if convention not in CONVENTIONS:
        raise UserError(f"unknown cycle convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")
    rates = np.asarray(rate, np.float64)
    if rates.size and not (rates.min() > 0 and rates.max() <= 1):
        raise UserError(f"a PE's rate must lie in 0..1 MACs a cycle, got {rates.min()}..{rates.max()}")
    return rates if convention == "exact" else np.asarray(1.0)


def _problem(m: ArrayLike, n: ArrayLike, k: ArrayLike, rows: ArrayLike, cols: ArrayLike) -> _Problem:
    problem = _Problem(
        m=_positive("m", m, _EXTENT_LIMIT),
        n=_positive("n", n, _EXTENT_LIMIT),
        k=_positive("k", k, _EXTENT_LIMIT),
        rows=_positive("rows", rows, ARRAY_LIMIT),
        cols=_positive("cols", cols, ARRAY_LIMIT),
    )
    # A float product cannot wrap, so it finds what the int64 products below could not hold.
    if np.any(problem.m.astype(np.float64) * problem.n * problem.k >= LIMIT):
        raise UserError("a GEMM of 2**53 or more MACs cannot be priced exactly: use a smaller batch_size")
    return problem


def _positive(name: str, value: ArrayLike, limit: int) -> IntArray:
    array = np.asarray(value)
    # Python's own numbers, where one is too large for a column.
    large = array.dtype.kind == "O" and all(type(item) is int for item in array.flat)
    if array.dtype.kind not in "iu" and not large:
        raise UserError(f"{name} must be a whole number, got {value!r}")
    if array.size and (array.min() < 1 or array.max() > limit):
        raise UserError(f"{name} must lie in 1..{limit}, got {shown(int(array.min()))}..{shown(int(array.max()))}")
    return array.astype(np.int64)


def _fold(problem: _Problem, choice: IntArray, rates: FloatArray) -> _Folds:
    """Lay the problem out as chosen; where the choice is free, by the dataflow of fewest cycles."""
    free = choice == len(DATAFLOWS)
    if not free.any():
        return _laid_out(problem, choice)
    laid_out = [_laid_out(problem, np.asarray(code)) for code in range(len(DATAFLOWS))]
    each = [_cycles(folds, _slowed(folds.lines, rates), "exact") for folds in laid_out]
    best = np.argmin(np.stack(np.broadcast_arrays(*each)), axis=0)
    return _laid_out(problem, np.where(free, best, choice))


def _laid_out(problem: _Problem, dataflow: IntArray) -> _Folds:
    m, n, k, rows, cols = problem
    output_stationary, input_stationary = dataflow == 0, dataflow == 2
    spatial_rows = np.where(output_stationary, m, k)
    spatial_cols = np.where(input_stationary, m, n)
    temporal = np.where(output_stationary, k, np.where(input_stationary, n, m))
    # ws and is first load the stationary operand, which takes another R lines.
    preload = np.where(output_stationary, 0, rows)
    return _Folds(
        dataflow=dataflow,
        spatial_rows=spatial_rows,
        spatial_cols=spatial_cols,
        temporal=temporal,
        row_folds=ceil_ratio(spatial_rows, rows).astype(np.int64),
        col_folds=ceil_ratio(spatial_cols, cols).astype(np.int64),
        lines=temporal + (preload + rows + cols - 2),
    )


def _cycles(folds: _Folds, lines: IntArray, convention: str) -> IntArray:
    """Cycles of all folds, from those that the lines of one take."""
    remedy = _CHECK_SIZE if convention == "scalesim" else f"{_CHECK_SIZE}, {_CHECK_RATE}"
    cycles = product("cycles", remedy, folds.row_folds * folds.col_folds, lines)
    return cycles - 1 if convention == "scalesim" else cycles


def _slowed(lines: IntArray, rates: FloatArray) -> IntArray:
    """Cycles of so many lines: the lines themselves where a PE does a MAC a cycle."""
    if (rates == 1).all():
        return lines
    return ceil_quotient(lines, rates, "cycles", _CHECK_RATE)


def _charged_lines(problem: _Problem, folds: _Folds, lines: IntArray, convention: str) -> IntArray:
    if convention == "exact":
        return lines
    return lines + np.where(folds.dataflow == 0, 0, problem.cols - 1)


def _sram_words(problem: _Problem, folds: _Folds, convention: str) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Words read of a and of b, read and written of the result; an operand is read again for every fold it meets."""
    m, n, k, rows, cols = problem
    output_stationary, weight_stationary, input_stationary = (folds.dataflow == code for code in range(3))
    ifmap = np.where(input_stationary, 1, folds.col_folds) * (m * k)
    filters = np.where(output_stationary, folds.row_folds, np.where(weight_stationary, 1, folds.col_folds)) * (k * n)
    ofmap = np.where(output_stationary, 1, folds.row_folds) * (m * n)
    if convention == "scalesim":
        padded = np.where(output_stationary, folds.row_folds * folds.col_folds * (rows + cols), 0)
        return ifmap, filters, np.zeros_like(ofmap), ofmap + padded
    return ifmap, filters, ofmap - m * n, ofmap
