"""SCALE-Sim's reports from the closed form: COMPUTE_REPORT, BANDWIDTH_REPORT and DETAILED_ACCESS_REPORT.

They have the form of SCALE-Sim 2.0.2 (version 3 has one more column in the first). The convention is "scalesim" (see
`hw.cycles`) and a word is a byte. With InterfaceBandwidth = CALC nothing stalls, and equal to SCALE-Sim's are

    COMPUTE_REPORT      every column
    SRAM columns        every one
    DRAM columns        of an ifmap or filter of fewer than 50 * floor(bytes / 100) distinct elements, and of an ofmap
                        of at most bytes / 2 words, where `bytes` is the size of its own memory

An ifmap or filter that fits is fetched in hundredths of its memory, 10 words a cycle, before cycle 0; an ofmap that
fits leaves one row of the array a cycle, after the last. What does not fit moves while the array computes, at cycles
that no closed form tells: its words are then those of one pass (SCALE-Sim may fetch some of them again, and counts some
padding as written), its average bandwidth is words / total cycles, and its start and stop cycles are left empty. The
table shown says for which layers.

With InterfaceBandwidth = USER the stalls are those of this project's own model (see `hw.traffic`), not SCALE-Sim's,
which follow the order of every fetch; total cycles and overall utilization hold them, and DRAM cycles are left empty.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from octo_exp.base.errors import UserError
from octo_exp.hw.columns import check_macs, gemm_arrays
from octo_exp.hw.cycles import DATAFLOWS, FloatArray, GemmCost, IntArray, gemm_cost
from octo_exp.hw.machines import Machines
from octo_exp.hw.price import price_gemms
from octo_exp.hw.profile import HardwareProfile
from octo_exp.hw.scalesim.windows import Convolution
from octo_exp.workload import Gemm, Workload

_COMPUTE = "Total Cycles, Stall Cycles, Overall Util %, Mapping Efficiency %, Compute Util %"
_BANDWIDTH = ", ".join(
    f"Avg {operand} {memory} BW" for memory in ("SRAM", "DRAM") for operand in ("IFMAP", "FILTER", "OFMAP")
)
_DETAILED = ", ".join(
    f"{memory} {operand} Start Cycle, {memory} {operand} Stop Cycle, {memory} {operand} {words}"
    for memory in ("SRAM", "DRAM")
    for operand, words in (("IFMAP", "Reads"), ("Filter", "Reads"), ("OFMAP", "Writes"))
)
_OPERANDS = ("ifmap", "filter", "ofmap")
# SCALE-Sim keeps this many of a memory's hundredths for the operand in use, and fetches so many words a cycle.
_HUNDREDTHS, _FETCH_WORDS = 50, 10
# Of reports; a depthwise convolution has one for each channel.
_MOST_ROWS = 10_000_000


class Transfer(NamedTuple):
    """Words moved by each of L layers, and the first and last cycle in which they are; int64 of shape [L]."""

    start: IntArray
    stop: IntArray
    words: IntArray


class OperandAccess(NamedTuple):
    """Traffic of one operand between the array and its SRAM, and between that and DRAM.

    `fits` [L] is false where the operand is too large for its memory: the cycles of `dram` then mean nothing.
    """

    sram: Transfer
    dram: Transfer
    fits: NDArray[np.bool_]


class Run(NamedTuple):
    """Layers priced by the convention "scalesim", and the traffic of ifmap, filter and ofmap.

    `cost` is without stalls, `stalls` [L] with them.
    """

    gemms: Sequence[Gemm]
    cost: GemmCost
    stalls: IntArray
    operands: tuple[OperandAccess, ...]


def simulate(gemms: Sequence[Gemm], profile: HardwareProfile, interface_bandwidth: str = "CALC") -> Run:
    """Price each of `gemms`, alike products once; USER limits the bandwidth to the profile's.

    Raises:
        UserError: a GEMM or an array too large to be priced exactly.

    """
    check_macs(gemms)
    if (rows := sum(gemm.count for gemm in gemms)) > _MOST_ROWS:
        raise UserError(f"the reports would have {rows:,} rows, one for each channel: more than {_MOST_ROWS:,}")
    columns = [[getattr(gemm, name) for gemm in gemms] for name in ("m", "n", "k", "elements_a", "elements_b")]
    m, n, k, *elements = np.array(columns, np.int64)
    cost = gemm_cost(m, n, k, rows=profile.rows, cols=profile.cols, dataflow=profile.dataflow, convention="scalesim")
    ifmap, filters, ofmap = _sram(m, n, k, cost, profile)
    for index, gemm in enumerate(gemms):
        if isinstance(gemm, Convolution) and gemm.hangs:
            ifmap.stop[index] = _last_read(gemm, cost, index, profile)
    written = np.where(cost.dataflow == 0, 1, cost.row_folds) * m * n
    operands = (
        OperandAccess(ifmap, *_fetched(elements[0], profile.sram_ifmap_kib)),
        OperandAccess(filters, *_fetched(elements[1], profile.sram_filter_kib)),
        OperandAccess(ofmap, *_drained(written, cost.cycles, profile)),
    )
    if interface_bandwidth == "CALC":
        return Run(gemms, cost, np.zeros_like(cost.cycles), operands)
    nowhere = np.zeros(len(gemms), np.bool_)
    moving = tuple(operand._replace(fits=nowhere) for operand in operands)
    return Run(gemms, cost, _stalls(gemms, profile), moving)


def _stalls(gemms: Sequence[Gemm], profile: HardwareProfile) -> IntArray:
    """Stalls of one product of each layer, all of its words being bytes."""
    words = [replace(gemm, count=1, bits_a=8, bits_b=8, bits_out=8) for gemm in gemms]
    workload = Workload(gemms=tuple(words), batch_size=1, grad_input_form="col2im")
    stalls: IntArray = price_gemms(gemm_arrays(workload), Machines.of([profile]), convention="exact").stall_cycles[0]
    return stalls


def reports(run: Run) -> dict[str, str]:
    """Text of SCALE-Sim's three reports, by file name; a row for each product."""
    counts = [gemm.count for gemm in run.gemms]
    cost, total = run.cost, run.cost.cycles + run.stalls
    cycles = np.maximum(total, 1)
    compute: list[IntArray | FloatArray] = [total, run.stalls]
    compute += [100 * overall_utilization(run), 100 * cost.mapping_utilization, 100 * cost.compute_utilization]
    bandwidth: list[IntArray | FloatArray] = [operand.sram.words / cycles for operand in run.operands]
    detailed: list[IntArray | FloatArray] = []
    for sram, _, _ in run.operands:
        detailed += [sram.start.astype(np.float64), sram.stop.astype(np.float64), sram.words]
    for _, dram, fits in run.operands:
        bandwidth.append(dram.words / np.where(fits, dram.stop - dram.start + 1, cycles))
        detailed += [np.where(fits, dram.start, np.nan), np.where(fits, dram.stop, np.nan), dram.words]
    return {
        "COMPUTE_REPORT.csv": _csv(_COMPUTE, compute, counts),
        "BANDWIDTH_REPORT.csv": _csv(_BANDWIDTH, bandwidth, counts),
        "DETAILED_ACCESS_REPORT.csv": _csv(_DETAILED, detailed, counts),
    }


def overall_utilization(run: Run) -> FloatArray:
    """MACs / (cycles with stalls * PEs) of each layer."""
    with_stalls = np.maximum(run.cost.cycles + run.stalls, 1)
    return np.asarray(run.cost.overall_utilization * np.maximum(run.cost.cycles, 1) / with_stalls)


def table(run: Run) -> str:
    """Layers and their total as aligned lines, and one line for each operand whose DRAM columns are not exact.

    A depthwise layer of many channels is one line with the figures of one of them.
    """
    names = [gemm.layer if gemm.count == 1 else f"{gemm.layer} x{gemm.count}" for gemm in run.gemms]
    width = max(5, *map(len, names))
    heads = f"{'M':>8} {'N':>8} {'K':>8} {'cycles':>12} {'stalls':>12} {'overall %':>9} {'mapping %':>9}"
    lines = [f"{'layer':<{width}} {heads}"]
    total = run.cost.cycles + run.stalls
    columns = (names, run.gemms, total, run.stalls, overall_utilization(run), run.cost.mapping_utilization)
    for name, gemm, cycles, stalls, overall, mapping in zip(*columns, strict=True):
        shape = f"{gemm.m:>8} {gemm.n:>8} {gemm.k:>8}"
        costs = f"{cycles:>12} {stalls:>12} {100 * overall:>9.2f} {100 * mapping:>9.2f}"
        lines.append(f"{name:<{width}} {shape} {costs}")
    # Python's own integers, for a sum of many layers may pass any column.
    sums = [
        sum(gemm.count * each for gemm, each in zip(run.gemms, column.tolist(), strict=True))
        for column in (total, run.stalls)
    ]
    lines.append(f"{'total':<{width}} {'':>26} {sums[0]:>12} {sums[1]:>12}")
    if run.stalls.any():
        lines.append("stalls are those of octo_exp.hw.traffic, not SCALE-Sim's; DRAM bandwidths are words / cycles")
        return "\n".join(lines) + "\n"
    for name, operand in zip(_OPERANDS, run.operands, strict=True):
        large = [gemm.layer for gemm, fits in zip(run.gemms, operand.fits, strict=True) if not fits]
        if large:
            lines.append(f"{name} exceeds half its memory, DRAM columns are approximate: {', '.join(large)}")
    return "\n".join(lines) + "\n"


def _sram(m: IntArray, n: IntArray, k: IntArray, cost: GemmCost, profile: HardwareProfile) -> list[Transfer]:
    """Cycles at the SRAMs: an operand enters row by row, skewed where it streams, and a read takes a cycle."""
    rows, cols = profile.rows, profile.cols
    by_output, by_weight, by_input = (cost.dataflow == code for code in range(3))
    spatial_rows, spatial_cols = np.where(by_output, m, k), np.where(by_input, m, n)
    temporal = np.where(by_output, k, np.where(by_input, n, m))
    # The last fold alone may leave rows and columns empty; in the first, all rows or all the problem has are filled.
    height = spatial_rows - (cost.row_folds - 1) * rows
    width = spatial_cols - (cost.col_folds - 1) * cols
    empty = rows - np.minimum(spatial_rows, rows)
    preload = np.where(by_output, 0, rows)
    lines = temporal + preload + rows + cols - 2
    last_fold = (cost.row_folds * cost.col_folds - 1) * lines
    streamed = last_fold + preload + temporal - 1
    ifmap = np.where(by_input, empty + 1, preload + 1), np.where(by_input, last_fold + rows, streamed + height)
    filters = (
        np.where(by_weight, empty + 1, preload + 1),
        np.where(by_weight, last_fold + rows, streamed + np.where(by_output, width, height)),
    )
    ofmap = np.where(by_output, temporal - 1 + empty, 2 * rows - 1), streamed + rows + width - 2
    return [
        Transfer(*ifmap, cost.sram_ifmap_reads),
        Transfer(*filters, cost.sram_filter_reads),
        Transfer(*ofmap, cost.sram_ofmap_writes),
    ]


def _last_read(gemm: Convolution, cost: GemmCost, index: int, profile: HardwareProfile) -> int:
    """The last cycle of an ifmap read where windows hang over the ifmap's edge."""
    rows, cols, dataflow = profile.rows, profile.cols, DATAFLOWS[int(cost.dataflow[index])]
    lines = (int(cost.cycles[index]) + 1) // int(cost.row_folds[index] * cost.col_folds[index])
    return gemm.last_read(dataflow, rows, cols, lines)


def _fetched(words: IntArray, kib: float) -> tuple[Transfer, NDArray[np.bool_]]:
    """Distinct elements read from DRAM: all before cycle 0, in whole hundredths of the memory."""
    hundredth = max(1, int(1024 * kib) // 100)
    cycles = -(-(-(-words // hundredth) * hundredth) // _FETCH_WORDS)
    return Transfer(-cycles, np.full_like(words, -1), words), words < _HUNDREDTHS * hundredth


def _drained(words: IntArray, cycles: IntArray, profile: HardwareProfile) -> tuple[Transfer, NDArray[np.bool_]]:
    """Results written to DRAM: all after the last cycle, one row of the array a cycle."""
    stop = cycles - 1 + -(-words // profile.cols)
    return Transfer(cycles, stop, words), words <= int(1024 * profile.sram_ofmap_kib) // 2


def _csv(header: str, columns: Sequence[IntArray | FloatArray], counts: Sequence[int]) -> str:
    """Report with so many rows for each layer; a cell that is not known is empty."""
    rows = [f"LayerID, {header},\n"]
    for count, *cells in zip(counts, *(column.tolist() for column in columns), strict=True):
        text = ", ".join("" if cell != cell else str(cell) for cell in cells)
        rows += [f"{layer}, {text},\n" for layer in range(len(rows) - 1, len(rows) - 1 + count)]
    return "".join(rows)
