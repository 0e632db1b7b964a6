"""What a search may optimize: each objective is a number for every machine, from one vectorized pricing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octo_exp.base.errors import UserError
from octo_exp.hw.columns import gemm_arrays
from octo_exp.hw.cycles import CONVENTIONS, DATAFLOWS, gemm_cycles
from octo_exp.hw.energy import EnergyTable
from octo_exp.hw.exact import product, sum_rows
from octo_exp.hw.machines import Machines
from octo_exp.hw.price import GemmPrices, check_arithmetic, price_gemms, price_vector
from octo_exp.hw.profile import HardwareProfile
from octo_exp.workload import Workload

FloatArray = NDArray[np.float64]
_UJ = 1e-6
# What is summed, and what to check where that is too much.
_CYCLES = ("cycles", "batch_size, or the axes rows and cols")
_STALLS = ("cycles", "batch_size and dram_bytes_per_cycle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One figure of a machine.

    Attributes:
        name: as it is asked for.
        column: as it is written down, with its unit.
        label: for an axis of a plot.
        whole: whether it is a whole number.
        is_maximized: more is better.

    """

    name: str
    column: str
    label: str
    whole: bool
    is_maximized: bool = False


OBJECTIVES = {
    objective.name: objective
    for objective in (
        # Compute cycles of the GEMMs alone, as in `CostReport.train_step_cycles`.
        Objective(name="cycles", column="cycles", label="compute cycles", whole=True),
        # With stalls and the work beside the GEMMs, as in `CostReport.total_cycles`.
        Objective(name="total_cycles", column="total_cycles", label="cycles with stalls and vector work", whole=True),
        Objective(name="energy", column="energy_uj", label="energy, uJ", whole=False),
        Objective(name="memory", column="memory_kib", label="on-chip memory, KiB", whole=False),
        Objective(name="processing_elements", column="processing_elements", label="processing elements", whole=True),
        # MACs / (compute cycles * PEs).
        Objective(name="utilization", column="utilization", label="utilization", whole=False, is_maximized=True),
    )
}


class Objectives:
    """Prices a workload on many machines at once; only what the named objectives need is computed.

    Args:
        names: out of OBJECTIVES, in the order of the columns of `costs`.
        workload: what is priced; leave out GEMMs and vector work of roles that do not count.
        convention: exact | scalesim, which has neither total_cycles nor energy.
        energy: needed for the objective energy.

    Raises:
        UserError: no objective, an unknown one or one twice, or one that convention or energy do not give.

    """

    def __init__(
        self, names: Sequence[str], workload: Workload, *, convention: str, energy: EnergyTable | None
    ) -> None:
        check_objectives(names, convention=convention, has_energy=energy is not None)
        self.chosen = tuple(OBJECTIVES[name] for name in names)
        self.workload = workload
        self.convention = convention
        self.energy = energy if "energy" in names else None
        self._gemms = gemm_arrays(workload)
        self._signs = np.array([-1.0 if objective.is_maximized else 1.0 for objective in self.chosen])

    def check(self, profile: HardwareProfile) -> None:
        """Raise `UserError` where the machine, hence any with the same fields given, cannot do the workload."""
        needed = {"total_cycles", "energy"} & {objective.name for objective in self.chosen}
        if needed and self.workload.vector and profile.vector_lanes is None:
            raise UserError(
                f"objective {min(needed)!r}: hardware profile {profile.name!r} has no vector unit for the work beside "
                "the GEMMs; give it vector_lanes, or choose cycles"
            )
        check_arithmetic(self.workload, profile, convention=self.convention, energy=self.energy)

    def __call__(self, machines: Machines) -> dict[str, FloatArray]:
        """Objective -> figures [P], in its own unit; whole numbers are exact, `UserError` where one reaches 2**53."""
        names = {objective.name for objective in self.chosen}
        found: dict[str, NDArray[Any]] = {}
        if names & {"total_cycles", "energy"}:
            found = self._priced(machines, names)
        elif names & {"cycles", "utilization"}:
            found = {"cycles": self._cycles(machines)}
        elements = machines.processing_elements[:, 0]
        if "utilization" in names:
            found["utilization"] = self.workload.macs / (np.maximum(found["cycles"], 1.0) * elements)
        found |= {"processing_elements": elements, "memory": machines.sram_kib[:, 0]}
        return {o.name: np.asarray(found[o.name], np.float64) for o in self.chosen}

    def costs(self, machines: Machines) -> FloatArray:
        """Figures [P, K] that are all to be minimized: those of maximized objectives are negated."""
        found = self(machines)
        return np.asarray(np.stack([found[objective.name] for objective in self.chosen], axis=1) * self._signs)

    def columns(self, costs: FloatArray) -> dict[str, list[int] | list[float]]:
        """Column -> figures for costs [P, K], as they are written down: in their units, whole numbers as such."""
        figures = (costs * self._signs).T
        return {
            o.column: (column.astype(np.int64) if o.whole else column).tolist()
            for o, column in zip(self.chosen, figures, strict=True)
        }

    def _cycles(self, machines: Machines) -> NDArray[Any]:
        """Compute cycles [P], without pricing traffic where the array does all GEMMs by a dataflow that is given."""
        gemms = self._gemms
        rate = machines.rate(gemms.width)
        free = (machines.dataflow == len(DATAFLOWS)).any()
        if self.convention == "exact" and (free or np.isnan(rate).any()):
            return sum_rows(price_gemms(gemms, machines, convention=self.convention).cycles, *_CYCLES)
        each = gemm_cycles(
            gemms.m,
            gemms.n,
            gemms.k,
            rows=machines.rows,
            cols=machines.cols,
            dataflow=machines.dataflow,
            convention=self.convention,
            rate=rate if self.convention == "exact" else 1.0,
        )
        return sum_rows(product("cycles", "batch_size", each, gemms.count), *_CYCLES)

    def _priced(self, machines: Machines, names: set[str]) -> dict[str, NDArray[Any]]:
        prices = price_gemms(self._gemms, machines, convention=self.convention, energy=self.energy)
        found: dict[str, NDArray[Any]] = {"cycles": sum_rows(prices.cycles, *_CYCLES)}
        if prices.energy_pj is not None:
            found["energy"] = _sum(prices.energy_pj) * _UJ
        if self.convention == "exact":
            self._add_vector_work(found, prices, machines)
        return found

    def _add_vector_work(self, found: dict[str, NDArray[Any]], prices: GemmPrices, machines: Machines) -> None:
        """Add what is done beside the GEMMs."""
        vector = price_vector(self.workload, machines, energy=self.energy)
        parts = [prices.stall_cycles, vector.stall_cycles, vector.cycles]
        parts = [found["cycles"], *(sum_rows(part, *_STALLS) for part in parts)]
        found["total_cycles"] = sum_rows(np.stack(parts, axis=1), *_STALLS)
        if vector.energy_pj is not None:
            found["energy"] = found["energy"] + _sum(vector.energy_pj) * _UJ


def check_objectives(names: Sequence[str], *, convention: str, has_energy: bool) -> None:
    """Raise `UserError` unless these objectives can be asked for; needs no workload."""
    if convention not in CONVENTIONS:
        raise UserError(f"unknown cycle convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")
    known = ", ".join(OBJECTIVES)
    if not names:
        raise UserError(f"objectives is empty: choose one or more of {known}")
    for name in names:
        if name not in OBJECTIVES:
            raise UserError(f"unknown objective {name!r}: choose among {known}")
    if len(set(names)) < len(names):
        raise UserError(f"objectives names one twice: {', '.join(names)}")
    for name in ("total_cycles", "energy"):
        if name in names and convention == "scalesim":
            raise UserError(
                f"objective {name!r}: the convention scalesim knows neither widths, stalls nor vector work; "
                "choose cycles, or convention=exact"
            )
    if "energy" in names and not has_energy:
        raise UserError("objective 'energy' needs an energy table: choose one, e.g. energy=horowitz_45nm")


def _sum(each: NDArray[Any]) -> NDArray[Any]:
    """Sum over GEMMs [P, L] -> [P], row by row, so that a machine's figure does not depend on its neighbours."""
    return np.asarray(np.ascontiguousarray(each).sum(axis=1))
