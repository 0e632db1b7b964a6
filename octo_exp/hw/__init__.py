"""What a training step costs on an accelerator: shapes in, cycles, bytes and energy out. Integers and numpy only."""

from octo_exp.hw.cycles import CHOICES, CONVENTIONS, DATAFLOWS, GemmCost, gemm_cost, gemm_cycles
from octo_exp.hw.energy import EnergyTable
from octo_exp.hw.liveness import MemoryReport, step_memory
from octo_exp.hw.machines import Machines
from octo_exp.hw.price import check_arithmetic, price_gemms
from octo_exp.hw.profile import HardwareProfile
from octo_exp.hw.step_cost import CostReport, CostRow, VectorRow, training_step_cost
from octo_exp.hw.workload import GRAD_INPUT_FORMS, ROLES, Buffer, Gemm, VectorWork, Workload

__all__ = [
    "CHOICES",
    "CONVENTIONS",
    "DATAFLOWS",
    "GRAD_INPUT_FORMS",
    "ROLES",
    "Buffer",
    "CostReport",
    "CostRow",
    "EnergyTable",
    "Gemm",
    "GemmCost",
    "HardwareProfile",
    "Machines",
    "MemoryReport",
    "VectorRow",
    "VectorWork",
    "Workload",
    "check_arithmetic",
    "gemm_cost",
    "gemm_cycles",
    "price_gemms",
    "step_memory",
    "training_step_cost",
]
