"""Bytes between on-chip and off-chip memory, and the cycles that the array waits for them.

Each operand has its own on-chip memory, half of which computes while the other half is filled. An operand that fits a
half is read once. One that does not is read again for every fold it meets, unless the loop around the folds keeps the
strip that consecutive folds share; of the two loop orders the one of fewer bytes is taken. With A, B, O the bytes of
operand a, operand b and the result, ha, hb, ho the halves, Fr and Fc the folds along rows and columns, and r and c the
shares of a whole fold, min(R, Sr) / Sr and min(C, Sc) / Sc:

    order            read of a              read of b              the result
    os, rows outer   A, or Fc A if r A>ha   B, or Fr B if B>hb     O
    os, cols outer   A, or Fc A if A>ha     B, or Fr B if c B>hb   O
    ws, cols outer   A, or Fc A if A>ha     B                      O, or with partial sums if c O>ho
    ws, rows outer   A, or Fc A if r A>ha   B                      O, or with partial sums if O>ho
    is               as ws, with a and b changed over

Partial sums that do not stay on chip are written Fr times and read Fr - 1 times. The array waits for the first fold's
operands and at the end for the last fold's results; in between, transfers and computation overlap. With F folds, D
bytes in all, W bytes a cycle and c compute cycles:

    stall = D / (F W) + max(0, D (1 - 1/F) / W - c) = max(D / (F W), D / W - c)

which is 0 without a limit to the bandwidth, and falls with W and with every memory. The model is this project's own.
In the convention "scalesim" the words are those of that simulator with bandwidth computed: every element once, the
results of ws and is Fr times, and nothing waits.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from octo_exp.hw.cycles import GemmCost
from octo_exp.hw.machines import Machines
from octo_exp.hw.workload import GemmArrays

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


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
        """Return the bytes of `count` such products."""
        return Traffic(**{f.name: getattr(self, f.name) * count for f in fields(self)})


def dram_traffic(gemms: GemmArrays, machines: Machines, cost: GemmCost, *, convention: str) -> Traffic:
    """Bytes of each GEMM on each machine, laid out as `cost` says."""
    shape = cost.cycles.shape
    if convention == "scalesim":
        results = np.where(cost.dataflow == 0, 1, cost.row_folds) * (gemms.m * gemms.n)
        once = np.broadcast_to(gemms.elements_a, shape), np.broadcast_to(gemms.elements_b, shape)
        return Traffic(
            ifmap_reads=once[0], filter_reads=once[1], ofmap_reads=np.zeros_like(results), ofmap_writes=results
        )
    rows_outer = _ordered(gemms, machines, cost, rows_outer=True)
    cols_outer = _ordered(gemms, machines, cost, rows_outer=False)
    return Traffic.where(rows_outer.total <= cols_outer.total, rows_outer, cols_outer)


def streamed(gemms: GemmArrays) -> Traffic:
    """Bytes of GEMMs that a vector unit does: every operand and the result once, [L]."""
    return Traffic(
        ifmap_reads=gemms.elements_a * gemms.bytes_a,
        filter_reads=gemms.elements_b * gemms.bytes_b,
        ofmap_reads=np.zeros_like(gemms.m),
        ofmap_writes=gemms.m * gemms.n * gemms.bytes_out,
    )


def stall_cycles(
    compute: IntArray | FloatArray, traffic: IntArray, folds: IntArray, bytes_per_cycle: FloatArray
) -> IntArray:
    """Cycles that the array waits in `compute` cycles of `folds` folds that move `traffic` bytes; arrays broadcast."""
    transfer = traffic / bytes_per_cycle
    # As a maximum, and not as a sum: a sum of rounded parts can pass a whole number by a hair.
    waiting: IntArray = np.ceil(np.maximum(transfer / folds, transfer - compute)).astype(np.int64)
    return waiting


def _ordered(gemms: GemmArrays, machines: Machines, cost: GemmCost, *, rows_outer: bool) -> Traffic:
    """Traffic of one loop order: the outer folds' strip of a stays, or that of b (os) and of the results (ws, is)."""
    row_folds, col_folds = cost.row_folds, cost.col_folds
    halves = (machines.sram_ifmap_kib * 512, machines.sram_filter_kib * 512, machines.sram_ofmap_kib * 512)
    a, b = gemms.elements_a * gemms.bytes_a, gemms.elements_b * gemms.bytes_b
    out = gemms.m * gemms.n * gemms.bytes_out
    output_stationary, weight_stationary, input_stationary = (cost.dataflow == code for code in range(3))
    spatial_rows = np.where(output_stationary, gemms.m, gemms.k)
    spatial_cols = np.where(input_stationary, gemms.m, gemms.n)
    row_share = np.minimum(machines.rows / spatial_rows, 1) if rows_outer else 1.0
    col_share = 1.0 if rows_outer else np.minimum(machines.cols / spatial_cols, 1)
    # os keeps a strip of b as well; ws and is stream the operand that is not stationary.
    again_a = np.where(input_stationary | (a * row_share <= halves[0]), 1, col_folds)
    share_b = np.where(output_stationary, col_share, row_share)
    folds_b = np.where(output_stationary, row_folds, col_folds)
    again_b = np.where(weight_stationary | (b * share_b <= halves[1]), 1, folds_b)
    spilled = np.where(output_stationary | (out * col_share <= halves[2]), 1, row_folds)
    return Traffic(
        ifmap_reads=again_a * a, filter_reads=again_b * b, ofmap_reads=(spilled - 1) * out, ofmap_writes=spilled * out
    )
