"""The vectorized model: L GEMMs on P machines -> cycles, stalls, traffic and energy of each, [P, L]."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octo_exp.base.errors import UserError
from octo_exp.hw.columns import GemmArrays, vector_arrays
from octo_exp.hw.cycles import DATAFLOWS, GemmCost, gemm_cost
from octo_exp.hw.energy import EnergyTable
from octo_exp.hw.exact import ceil_quotient, product
from octo_exp.hw.machines import Machines
from octo_exp.hw.profile import HardwareProfile
from octo_exp.hw.traffic import Traffic, dram_traffic, stall_cycles, vector_traffic
from octo_exp.workload import WIDTHS, Workload

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmPrices:
    """What each GEMM costs on each machine; arrays [P, L] that cover all `count` products.

    Attributes:
        cost: layout, utilization and SRAM words of one product on the array, in the terms of SCALE-Sim.
        on_vector: whether the vector unit does it, for the array does not multiply its width.
        cycles: compute cycles.
        stall_cycles: cycles in which the unit waits for off-chip memory; 0 in the convention "scalesim".
        traffic: off-chip bytes.
        energy_pj: energy, or None without a table.

    """

    cost: GemmCost
    on_vector: NDArray[np.bool_]
    cycles: IntArray
    stall_cycles: IntArray
    traffic: Traffic
    energy_pj: FloatArray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorPrices:
    """What the work beside the GEMMs costs, [P, V]; all 0 where a machine has no vector unit."""

    cycles: IntArray
    stall_cycles: IntArray
    energy_pj: FloatArray | None


def price_gemms(
    gemms: GemmArrays, machines: Machines, *, convention: str, energy: EnergyTable | None = None
) -> GemmPrices:
    """Price every GEMM on every machine; `check_arithmetic` says beforehand whether a machine can do them at all.

    A dataflow per_gemm is that of fewest cycles with stalls, of equals that of fewest without, the first of those. In
    the convention "scalesim" every operand is a byte and every PE does a MAC a cycle, whatever the widths say, and
    there is no energy.
    """
    if convention == "scalesim":
        one = np.ones_like(gemms.m)
        gemms = replace(gemms, bytes_a=one, bytes_b=one, bytes_out=one, width=np.zeros_like(one))
        energy = None
    free = machines.dataflow == len(DATAFLOWS)
    if not free.any():
        return _priced(gemms, machines, convention, energy)
    best: GemmPrices | None = None
    for code in range(len(DATAFLOWS)):
        fixed = replace(machines, dataflow=np.where(free, code, machines.dataflow))
        prices = _priced(gemms, fixed, convention, energy)
        best = prices if best is None else _faster(prices, best)
    assert best is not None
    return best


def _priced(gemms: GemmArrays, machines: Machines, convention: str, energy: EnergyTable | None) -> GemmPrices:
    """Price with the dataflows that the machines name."""
    rate = machines.rate(gemms.width)
    on_vector = np.isnan(rate)
    cost = gemm_cost(
        gemms.m,
        gemms.n,
        gemms.k,
        rows=machines.rows,
        cols=machines.cols,
        dataflow=machines.dataflow,
        convention=convention,
        rate=np.where(on_vector, 1.0, rate),
    )
    cycles, folds = cost.cycles, cost.row_folds * cost.col_folds
    traffic = dram_traffic(gemms, machines, cost, convention=convention)
    if on_vector.any():
        macs = gemms.m * gemms.n * gemms.k
        cycles = np.where(on_vector, -(-macs // machines.lanes), cycles)
        folds = np.where(on_vector, gemms.m * -(-gemms.n // machines.lanes), folds)
        traffic = Traffic.where(on_vector, vector_traffic(gemms, machines), traffic)
        cost = replace(
            cost,
            sram_ifmap_reads=np.where(on_vector, macs, cost.sram_ifmap_reads),
            sram_filter_reads=np.where(on_vector, macs, cost.sram_filter_reads),
            sram_ofmap_reads=np.where(on_vector, 0, cost.sram_ofmap_reads),
            sram_ofmap_writes=np.where(on_vector, gemms.m * gemms.n, cost.sram_ofmap_writes),
        )
    stalls = np.zeros_like(cycles)
    if convention == "exact":
        stalls = stall_cycles(cycles, traffic.total, folds, machines.dram_bytes_per_cycle)
    return GemmPrices(
        cost=cost,
        on_vector=on_vector,
        cycles=product("cycles", "batch_size", cycles, gemms.count),
        stall_cycles=product("cycles", "batch_size, dram_bytes_per_cycle", stalls, gemms.count),
        traffic=traffic.times(gemms.count),
        energy_pj=None if energy is None else gemm_energy_pj(gemms, machines, cost, traffic, energy),
    )


def _faster(new: GemmPrices, old: GemmPrices) -> GemmPrices:
    """For each GEMM and machine the price of fewer cycles with stalls, of equals that of fewer without; else `old`."""
    total, least = new.cycles + new.stall_cycles, old.cycles + old.stall_cycles
    better = (total < least) | ((total == least) & (new.cycles < old.cycles))

    def chosen(one: Any, other: Any) -> Any:
        if one is None:
            return None
        if isinstance(one, np.ndarray):
            return np.where(better, one, other)
        return type(one)(**{f.name: chosen(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)})

    found: GemmPrices = chosen(new, old)
    return found


def price_vector(workload: Workload, machines: Machines, *, energy: EnergyTable | None = None) -> VectorPrices:
    """Price the work of the vector unit: an operation a lane and cycle, or what off-chip memory lets through."""
    operations, read, written = vector_arrays(workload)
    has_unit = ~np.isnan(machines.vector_lanes)
    cycles = np.where(has_unit, -(-operations // machines.lanes), 0)
    transfer = ceil_quotient(read + written, machines.dram_bytes_per_cycle, "cycles", "dram_bytes_per_cycle")
    waits = np.where(has_unit, np.maximum(0, transfer - cycles), 0)
    spent = None
    if energy is not None:
        each = operations * energy.vector_op_pj
        each = each + read * energy.dram_read_pj_per_byte + written * energy.dram_write_pj_per_byte
        spent = np.where(has_unit, each, 0)
    return VectorPrices(cycles=cycles, stall_cycles=waits, energy_pj=spent)


def gemm_energy_pj(
    gemms: GemmArrays, machines: Machines, cost: GemmCost, traffic: Traffic, energy: EnergyTable
) -> FloatArray:
    """Energy of all products: MACs, words between array and SRAM, bytes between SRAM and off-chip memory.

    A byte that comes from off chip is also written into its SRAM, one that leaves is read from it.
    """
    total = energy.mac_pj_by_width()[gemms.width] * (gemms.m * gemms.n * gemms.k)
    read, write = energy.sram_pj_per_byte(machines.sram_ifmap_kib)
    total = total + cost.sram_ifmap_reads * gemms.bytes_a * read + traffic.ifmap_reads * write
    read, write = energy.sram_pj_per_byte(machines.sram_filter_kib)
    total = total + cost.sram_filter_reads * gemms.bytes_b * read + traffic.filter_reads * write
    read, write = energy.sram_pj_per_byte(machines.sram_ofmap_kib)
    total = total + (cost.sram_ofmap_reads * gemms.bytes_out + traffic.ofmap_writes) * read
    total = total + (cost.sram_ofmap_writes * gemms.bytes_out + traffic.ofmap_reads) * write
    fetched = traffic.ifmap_reads + traffic.filter_reads + traffic.ofmap_reads
    total = total + fetched * energy.dram_read_pj_per_byte + traffic.ofmap_writes * energy.dram_write_pj_per_byte
    return np.asarray(total * gemms.count, np.float64)


def check_arithmetic(
    workload: Workload, profile: HardwareProfile, *, convention: str, energy: EnergyTable | None = None
) -> None:
    """Raise `UserError` where the machine does not multiply an operand width, or the energy table does not price it.

    The convention "scalesim" knows no widths.
    """
    if convention == "scalesim":
        return
    for width in WIDTHS[1:]:
        if getattr(profile, f"{width}_macs_per_pe_cycle") is None and profile.vector_lanes is None:
            _refuse(workload, width, f"hardware profile {profile.name!r} multiplies no {width}")
        if energy is not None and energy.mac_pj(width) is None:
            _refuse(workload, width, f"energy table {energy.name!r} has no {width}_mac_pj")


def _refuse(workload: Workload, width: str, reason: str) -> None:
    layers = dict.fromkeys(gemm.layer for gemm in workload.gemms if gemm.width == width)
    if not layers:
        return
    share = sum(gemm.macs for gemm in workload.gemms if gemm.width == width) / workload.macs
    first, others = next(iter(layers)), len(layers) - 1
    named = f"layer {first!r}" + (f" and {others} more" if others else "")
    raise UserError(
        f"{reason}, which {named} ({100 * share:.1f} % of the MACs) needs: "
        "make it int8 (e.g. quant=int8 'quant.skip=[]'), or choose another profile or table"
    )
