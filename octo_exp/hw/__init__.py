"""What a training step costs on an accelerator: shapes in, cycles out. Integers and numpy only."""

from octo_exp.hw.cycles import CONVENTIONS, DATAFLOWS, GemmCost, gemm_cost, gemm_cycles
from octo_exp.hw.profile import HardwareProfile
from octo_exp.hw.report import CostReport, CostRow, training_step_cost
from octo_exp.hw.workload import GRAD_INPUT_FORMS, ROLES, Gemm, Workload

__all__ = [
    "CONVENTIONS",
    "DATAFLOWS",
    "GRAD_INPUT_FORMS",
    "ROLES",
    "CostReport",
    "CostRow",
    "Gemm",
    "GemmCost",
    "HardwareProfile",
    "Workload",
    "gemm_cost",
    "gemm_cycles",
    "training_step_cost",
]
