"""The price of a training step on one machine: a row for each GEMM, a row for the work beside it, and totals."""

import math
from dataclasses import dataclass

import numpy as np

from octo_exp.hw.columns import gemm_arrays
from octo_exp.hw.cycles import DATAFLOWS
from octo_exp.hw.energy import EnergyTable
from octo_exp.hw.machines import Machines
from octo_exp.hw.price import GemmPrices, check_arithmetic, price_gemms, price_vector
from octo_exp.hw.profile import HardwareProfile
from octo_exp.workload import Gemm, Workload

MIB = 2**20
_UJ = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One layer in one role; everything but m, n, k and the utilizations covers all `count` GEMMs.

    `unit` is array, or vector where the array does not multiply the operands' width; utilizations are those of the
    unit. Average bandwidths are words or bytes a cycle over compute and stall cycles.
    """

    layer: str
    role: str
    m: int
    n: int
    k: int
    count: int
    bits_a: int
    bits_b: int
    unit: str
    dataflow: str
    cycles: int
    stall_cycles: int
    macs: int
    utilization: float
    mapping_utilization: float
    compute_utilization: float
    sram_ifmap_reads: int
    sram_filter_reads: int
    sram_ofmap_reads: int
    sram_ofmap_writes: int
    dram_ifmap_read_bytes: int
    dram_filter_read_bytes: int
    dram_ofmap_read_bytes: int
    dram_ofmap_write_bytes: int
    sram_ifmap_words_per_cycle: float
    sram_filter_words_per_cycle: float
    sram_ofmap_words_per_cycle: float
    dram_ifmap_bytes_per_cycle: float
    dram_filter_bytes_per_cycle: float
    dram_ofmap_bytes_per_cycle: float
    energy_uj: float | None
    milliseconds: float

    @property
    def dram_bytes(self) -> int:
        """Off-chip bytes of all operands."""
        reads = self.dram_ifmap_read_bytes + self.dram_filter_read_bytes + self.dram_ofmap_read_bytes
        return reads + self.dram_ofmap_write_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorRow:
    """Work of one kind that a layer does in one role beside its GEMM; None where the machine has no vector unit."""

    layer: str
    role: str
    kind: str
    operations: int
    dram_bytes: int
    cycles: int | None
    stall_cycles: int | None
    energy_uj: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """The cost of a training step; work of the vector unit has rows and a total of its own.

    Units follow each other without overlap. The convention "scalesim" knows the array alone: neither stalls nor vector
    work.
    """

    profile: str
    convention: str
    grad_input_form: str
    batch_size: int
    rows: tuple[CostRow, ...]
    vector_rows: tuple[VectorRow, ...]
    processing_elements: int
    frequency_mhz: float
    has_vector_unit: bool

    def cycles_of(self, role: str) -> int:
        """Compute cycles of one role's GEMMs."""
        return sum(row.cycles for row in self.rows if row.role == role)

    @property
    def train_step_cycles(self) -> int:
        """Compute cycles of all GEMMs."""
        return sum(row.cycles for row in self.rows)

    @property
    def vector_cycles(self) -> int | None:
        """Compute cycles of the vector unit's own work; None where the machine, or the convention, has no such unit."""
        return sum(row.cycles or 0 for row in self.vector_rows) if self.has_vector_unit else None

    @property
    def stall_cycles(self) -> int:
        """Cycles in which the array or the vector unit waits for off-chip memory."""
        return sum(row.stall_cycles for row in self.rows) + sum(row.stall_cycles or 0 for row in self.vector_rows)

    @property
    def is_whole(self) -> bool:
        """Whether everything is priced: not the work of a vector unit that the machine lacks."""
        return all(row.cycles is not None for row in self.vector_rows)

    @property
    def total_cycles(self) -> int | None:
        """Compute cycles of array and vector unit, and stalls; None where there is work that the machine cannot do."""
        vector = self.vector_cycles or 0
        return self.train_step_cycles + vector + self.stall_cycles if self.is_whole else None

    @property
    def utilization(self) -> float:
        """MACs of the GEMMs / (their compute cycles * PEs)."""
        return sum(row.macs for row in self.rows) / (max(self.train_step_cycles, 1) * self.processing_elements)

    @property
    def dram_bytes(self) -> int:
        """Off-chip bytes of everything that is priced."""
        vector = sum(row.dram_bytes for row in self.vector_rows if row.cycles is not None)
        return sum(row.dram_bytes for row in self.rows) + vector

    @property
    def energy_uj(self) -> float | None:
        """Energy of everything; None for want of a table, or where there is work that the machine cannot do."""
        each = [row.energy_uj for row in self.rows] + [row.energy_uj for row in self.vector_rows]
        known = [energy for energy in each if energy is not None]
        return math.fsum(known) if known and self.is_whole else None

    def totals(self) -> dict[str, int | float]:
        """The totals by name, as they are logged; what the machine or the table does not give is absent."""
        found: dict[str, int | float | None] = {
            "forward_cycles": self.cycles_of("output"),
            "grad_input_cycles": self.cycles_of("grad_input"),
            "grad_weight_cycles": self.cycles_of("grad_weight"),
            "train_step_cycles": self.train_step_cycles,
            "vector_cycles": self.vector_cycles,
            "stall_cycles": self.stall_cycles,
            "total_cycles": self.total_cycles,
            "total_ms": None if self.total_cycles is None else self.total_cycles / (self.frequency_mhz * 1e3),
            "utilization": self.utilization,
            "dram_mib": self.dram_bytes / MIB,
            "energy_uj": self.energy_uj,
        }
        return {name: value for name, value in found.items() if value is not None}


def training_step_cost(
    workload: Workload, profile: HardwareProfile, *, convention: str, energy: EnergyTable | None = None
) -> CostReport:
    """Price every GEMM of `workload` on `profile`, and the work beside them.

    `convention` is "exact", or "scalesim": one byte and one MAC an operand, a cycle short a GEMM, no energy; see
    `hw.cycles`. On a machine without a vector unit the work beside the GEMMs has no price, and the totals that would
    need it are None.

    Raises:
        UserError: an unknown convention, a GEMM too large to be priced exactly, or an operand width that the machine
            does not multiply or the table does not price.

    """
    check_arithmetic(workload, profile, convention=convention, energy=energy)
    machine = Machines.of([profile])
    prices = price_gemms(gemm_arrays(workload), machine, convention=convention, energy=energy)
    rows = tuple(_row(gemm, prices, index, profile) for index, gemm in enumerate(workload.gemms))
    vector = () if convention == "scalesim" else _vector_rows(workload, machine, energy)
    return CostReport(
        profile=profile.name,
        convention=convention,
        grad_input_form=workload.grad_input_form,
        batch_size=workload.batch_size,
        rows=rows,
        vector_rows=vector,
        processing_elements=profile.processing_elements,
        frequency_mhz=profile.frequency_mhz,
        has_vector_unit=profile.vector_lanes is not None and convention == "exact",
    )


def _row(gemm: Gemm, prices: GemmPrices, index: int, profile: HardwareProfile) -> CostRow:
    at = (0, index)
    on_vector = bool(prices.on_vector[at])
    cycles, stalls = int(prices.cycles[at]), int(prices.stall_cycles[at])
    cost, traffic, total = prices.cost, prices.traffic, max(cycles + stalls, 1)
    lane_use = gemm.macs / (cycles * (profile.vector_lanes or 1)) if on_vector else 0.0
    ofmap = int(traffic.ofmap_reads[at]) + int(traffic.ofmap_writes[at])
    sums = int(cost.sram_ofmap_reads[at]) + int(cost.sram_ofmap_writes[at])
    return CostRow(
        layer=gemm.layer,
        role=gemm.role,
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        count=gemm.count,
        bits_a=gemm.bits_a,
        bits_b=gemm.bits_b,
        unit="vector" if on_vector else "array",
        dataflow="-" if on_vector else DATAFLOWS[int(cost.dataflow[at])],
        cycles=cycles,
        stall_cycles=stalls,
        macs=gemm.macs,
        utilization=lane_use if on_vector else float(cost.overall_utilization[at]),
        mapping_utilization=lane_use if on_vector else float(cost.mapping_utilization[at]),
        compute_utilization=lane_use if on_vector else float(cost.compute_utilization[at]),
        sram_ifmap_reads=int(cost.sram_ifmap_reads[at]) * gemm.count,
        sram_filter_reads=int(cost.sram_filter_reads[at]) * gemm.count,
        sram_ofmap_reads=int(cost.sram_ofmap_reads[at]) * gemm.count,
        sram_ofmap_writes=int(cost.sram_ofmap_writes[at]) * gemm.count,
        dram_ifmap_read_bytes=int(traffic.ifmap_reads[at]),
        dram_filter_read_bytes=int(traffic.filter_reads[at]),
        dram_ofmap_read_bytes=int(traffic.ofmap_reads[at]),
        dram_ofmap_write_bytes=int(traffic.ofmap_writes[at]),
        sram_ifmap_words_per_cycle=int(cost.sram_ifmap_reads[at]) * gemm.count / total,
        sram_filter_words_per_cycle=int(cost.sram_filter_reads[at]) * gemm.count / total,
        sram_ofmap_words_per_cycle=sums * gemm.count / total,
        dram_ifmap_bytes_per_cycle=int(traffic.ifmap_reads[at]) / total,
        dram_filter_bytes_per_cycle=int(traffic.filter_reads[at]) / total,
        dram_ofmap_bytes_per_cycle=ofmap / total,
        energy_uj=None if prices.energy_pj is None else float(prices.energy_pj[at]) * _UJ,
        milliseconds=(cycles + stalls) / (profile.frequency_mhz * 1e3),
    )


def _vector_rows(workload: Workload, machine: Machines, energy: EnergyTable | None) -> tuple[VectorRow, ...]:
    prices = price_vector(workload, machine, energy=energy)
    priced = not bool(np.isnan(machine.vector_lanes[0, 0]))
    rows = []
    for index, work in enumerate(workload.vector):
        at = (0, index)
        spent = prices.energy_pj
        rows.append(
            VectorRow(
                layer=work.layer,
                role=work.role,
                kind=work.kind,
                operations=work.operations,
                dram_bytes=work.bytes_read + work.bytes_written,
                cycles=int(prices.cycles[at]) if priced else None,
                stall_cycles=int(prices.stall_cycles[at]) if priced else None,
                energy_uj=float(spent[at]) * _UJ if priced and spent is not None else None,
            )
        )
    return tuple(rows)
