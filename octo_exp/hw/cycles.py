"""Exact compute cycles, utilization and SRAM traffic of a GEMM on a systolic array, in closed form.

A GEMM [M, K] x [K, N] is laid on an array of R rows and C columns. The dataflow says which operand stays in the
processing elements (PEs), hence which two extents are spatial (Sr down the rows, Sc along the columns) and which one
streams through time (T):

    dataflow  Sr  Sc  T   lines of one fold L
    os        M   N   K   T + R + C - 2
    ws        K   N   M   T + 2R + C - 2
    is        K   M   N   T + 2R + C - 2

    folds  = ceil(Sr / R) * ceil(Sc / C)
    cycles = folds * L                        (convention "true")
    cycles = folds * L - 1                    (convention "scalesim")

Every fold pays the full fill and drain of R and C, and folds never overlap. The formulas reproduce SCALE-Sim 2.0.2 and
3.0.0 with bandwidth computed rather than limited (Samajdar et al., ISPASS 2020); its three habits are kept in the
convention "scalesim" alone: it reports the index of the last line instead of the number of lines, divides the compute
utilization of ws and is by C - 1 lines too many, and counts R + C ofmap writes per fold too many for os.

All functions are vectorized: extents, array sizes and dataflows broadcast against each other, and a scalar is an array
of shape (). Results are exact while m * n * k < 2**53, m, n, k <= 2**40 and rows, cols <= 2**16; beyond, they refuse.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from octo_exp.errors import UserError

DATAFLOWS = ("os", "ws", "is")
CONVENTIONS = ("scalesim", "true")

_EXTENT_LIMIT = 2**40
_ARRAY_LIMIT = 2**16
_MACS_LIMIT = 2.0**53

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
        sram_ifmap_reads: words of operand a read from its SRAM.
        sram_filter_reads: words of operand b read from its SRAM.
        sram_ofmap_writes: words of the result written to its SRAM, partial sums of ws and is included.

    """

    cycles: IntArray
    overall_utilization: FloatArray
    mapping_utilization: FloatArray
    compute_utilization: FloatArray
    sram_ifmap_reads: IntArray
    sram_filter_reads: IntArray
    sram_ofmap_writes: IntArray


class _Problem(NamedTuple):
    m: IntArray
    n: IntArray
    k: IntArray
    rows: IntArray
    cols: IntArray
    dataflow: NDArray[Any]


class _Folds(NamedTuple):
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
) -> IntArray:
    """Compute cycles of [m, k] x [k, n] on rows x cols PEs; int64, of the arguments' broadcast shape.

    Raises:
        UserError: an extent that is not a positive whole number or too large, an unknown dataflow or convention.

    """
    _check_convention(convention)
    return _cycles(_fold(_problem(m, n, k, rows, cols, dataflow)), convention)


def gemm_cost(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    rows: ArrayLike,
    cols: ArrayLike,
    dataflow: ArrayLike,
    convention: str,
) -> GemmCost:
    """Cycles, utilization and SRAM traffic of [m, k] x [k, n] on rows x cols PEs; errors as in `gemm_cycles`."""
    _check_convention(convention)
    problem = _problem(m, n, k, rows, cols, dataflow)
    folds = _fold(problem)
    cycles = _cycles(folds, convention)
    macs = problem.m * problem.n * problem.k
    elements = problem.rows * problem.cols
    mapping = folds.spatial_rows * folds.spatial_cols / (folds.row_folds * folds.col_folds * elements)
    ifmap, filters, ofmap = _sram_words(problem, folds, convention)
    return GemmCost(
        cycles=cycles,
        # One MAC on one PE takes 0 cycles by the convention "scalesim"; it keeps that PE busy all the same.
        overall_utilization=np.asarray(macs / (np.maximum(cycles, 1) * elements), np.float64),
        mapping_utilization=np.asarray(mapping, np.float64),
        compute_utilization=np.asarray(mapping * folds.temporal / _charged_lines(problem, folds, convention)),
        sram_ifmap_reads=ifmap,
        sram_filter_reads=filters,
        sram_ofmap_writes=ofmap,
    )


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise UserError(f"unknown cycle convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")


def _problem(
    m: ArrayLike, n: ArrayLike, k: ArrayLike, rows: ArrayLike, cols: ArrayLike, dataflow: ArrayLike
) -> _Problem:
    problem = _Problem(
        m=_positive("m", m, _EXTENT_LIMIT),
        n=_positive("n", n, _EXTENT_LIMIT),
        k=_positive("k", k, _EXTENT_LIMIT),
        rows=_positive("rows", rows, _ARRAY_LIMIT),
        cols=_positive("cols", cols, _ARRAY_LIMIT),
        dataflow=_dataflows(dataflow),
    )
    # A float product cannot wrap, so it finds what the int64 products below could not hold.
    if np.any(problem.m.astype(np.float64) * problem.n * problem.k >= _MACS_LIMIT):
        raise UserError("a GEMM of 2**53 or more MACs cannot be priced exactly: use a smaller batch_size")
    return problem


def _positive(name: str, value: ArrayLike, limit: int) -> IntArray:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise UserError(f"{name} must be a whole number, got {value!r}")
    if array.size and (array.min() < 1 or array.max() > limit):
        raise UserError(f"{name} must lie in 1..{limit}, got {array.min()}..{array.max()}")
    return array.astype(np.int64)


def _dataflows(dataflow: ArrayLike) -> NDArray[Any]:
    array = np.asarray(dataflow)
    wrong = [str(name) for name in np.unique(array) if name not in DATAFLOWS]
    if wrong:
        raise UserError(f"unknown dataflow {wrong[0]!r}: choose one of {', '.join(DATAFLOWS)}")
    return array


def _fold(problem: _Problem) -> _Folds:
    m, n, k, rows, cols, dataflow = problem
    output_stationary = dataflow == "os"
    input_stationary = dataflow == "is"
    spatial_rows = np.where(output_stationary, m, k)
    spatial_cols = np.where(input_stationary, m, n)
    temporal = np.where(output_stationary, k, np.where(input_stationary, n, m))
    # ws and is first load the stationary operand, which takes another R lines.
    preload = np.where(output_stationary, 0, rows)
    return _Folds(
        spatial_rows=spatial_rows,
        spatial_cols=spatial_cols,
        temporal=temporal,
        row_folds=-(-spatial_rows // rows),
        col_folds=-(-spatial_cols // cols),
        lines=temporal + preload + rows + cols - 2,
    )


def _cycles(folds: _Folds, convention: str) -> IntArray:
    total = folds.row_folds * folds.col_folds * folds.lines
    return np.asarray(total - (1 if convention == "scalesim" else 0), np.int64)


def _charged_lines(problem: _Problem, folds: _Folds, convention: str) -> IntArray:
    if convention == "true":
        return folds.lines
    return folds.lines + np.where(problem.dataflow == "os", 0, problem.cols - 1)


def _sram_words(problem: _Problem, folds: _Folds, convention: str) -> tuple[IntArray, IntArray, IntArray]:
    """Words read of a, read of b and written of the result; an operand is read again for every fold it meets."""
    m, n, k, rows, cols, dataflow = problem
    output_stationary = dataflow == "os"
    weight_stationary = dataflow == "ws"
    input_stationary = dataflow == "is"
    ifmap = np.where(input_stationary, 1, folds.col_folds) * m * k
    filters = np.where(output_stationary, folds.row_folds, np.where(weight_stationary, 1, folds.col_folds)) * k * n
    ofmap = np.where(output_stationary, 1, folds.row_folds) * m * n
    if convention == "scalesim":
        ofmap = ofmap + np.where(output_stationary, folds.row_folds * folds.col_folds * (rows + cols), 0)
    return ifmap, filters, ofmap
