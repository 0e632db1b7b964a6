"""The price of a training step on one machine: a row for each GEMM and a total for each pass."""

import math
from dataclasses import dataclass

import numpy as np

from octo_exp.hw.cycles import gemm_cost
from octo_exp.hw.profile import HardwareProfile
from octo_exp.hw.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """One layer in one role; cycles, MACs and milliseconds cover all `count` GEMMs of shape m, n, k."""

    layer: str
    role: str
    m: int
    n: int
    k: int
    count: int
    cycles: int
    macs: int
    utilization: float
    milliseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """Compute cycles of a training step, without memory stalls.

    Not priced, for no GEMM count knows them: quantising and rescaling, activations, pooling and normalization, the
    scattered adds of col2im, the optimizer.
    """

    profile: str
    convention: str
    grad_input_form: str
    batch_size: int
    rows: tuple[CostRow, ...]

    @property
    def forward_cycles(self) -> int:
        """Cycles of the role `output`."""
        return self._cycles_of("output")

    @property
    def grad_input_cycles(self) -> int:
        """Cycles of the role `grad_input`."""
        return self._cycles_of("grad_input")

    @property
    def grad_weight_cycles(self) -> int:
        """Cycles of the role `grad_weight`."""
        return self._cycles_of("grad_weight")

    @property
    def train_step_cycles(self) -> int:
        """Cycles of all three roles."""
        return sum(row.cycles for row in self.rows)

    @property
    def train_step_ms(self) -> float:
        """Milliseconds of all three roles at the machine's clock."""
        return math.fsum(row.milliseconds for row in self.rows)

    def totals(self) -> dict[str, int | float]:
        """The five totals by name, as they are logged."""
        return {
            "forward_cycles": self.forward_cycles,
            "grad_input_cycles": self.grad_input_cycles,
            "grad_weight_cycles": self.grad_weight_cycles,
            "train_step_cycles": self.train_step_cycles,
            "train_step_ms": self.train_step_ms,
        }

    def _cycles_of(self, role: str) -> int:
        return sum(row.cycles for row in self.rows if row.role == role)


def training_step_cost(workload: Workload, profile: HardwareProfile, *, convention: str) -> CostReport:
    """Price every GEMM of `workload` on `profile`.

    `convention` is "scalesim" (each GEMM one cycle short, as that simulator reports it) or "true"; see `hw.cycles`.

    Raises:
        UserError: an unknown convention, or a GEMM too large to be priced exactly.

    """
    # The type is named because an empty workload would become an array of floats.
    shapes = np.array([(gemm.m, gemm.n, gemm.k) for gemm in workload.gemms], np.int64).reshape(-1, 3)
    cost = gemm_cost(*shapes.T, rows=profile.rows, cols=profile.cols, dataflow=profile.dataflow, convention=convention)
    rows = []
    for gemm, cycles, utilization in zip(workload.gemms, cost.cycles, cost.overall_utilization, strict=True):
        total = int(cycles) * gemm.count
        rows.append(
            CostRow(
                layer=gemm.layer,
                role=gemm.role,
                m=gemm.m,
                n=gemm.n,
                k=gemm.k,
                count=gemm.count,
                cycles=total,
                macs=gemm.macs,
                utilization=float(utilization),
                milliseconds=total / (profile.frequency_mhz * 1e3),
            )
        )
    return CostReport(
        profile=profile.name,
        convention=convention,
        grad_input_form=workload.grad_input_form,
        batch_size=workload.batch_size,
        rows=tuple(rows),
    )
