"""What a training step costs on an accelerator: shapes in, cycles, bytes and energy out. Integers and numpy only."""

from octo_exp.hw.columns import gemm_arrays
from octo_exp.hw.cycles import CHOICES, CONVENTIONS, DATAFLOWS, GemmCost, gemm_cost, gemm_cycles
from octo_exp.hw.energy import EnergyTable
from octo_exp.hw.liveness import MemoryReport, step_memory
from octo_exp.hw.machines import Machines
from octo_exp.hw.price import check_arithmetic, price_gemms
from octo_exp.hw.profile import HardwareProfile
from octo_exp.hw.step_cost import CostReport, CostRow, VectorRow, training_step_cost

__all__ = [
    "CHOICES",
    "CONVENTIONS",
    "DATAFLOWS",
    "CostReport",
    "CostRow",
    "EnergyTable",
    "GemmCost",
    "HardwareProfile",
    "Machines",
    "MemoryReport",
    "VectorRow",
    "check_arithmetic",
    "gemm_arrays",
    "gemm_cost",
    "gemm_cycles",
    "price_gemms",
    "step_memory",
    "training_step_cost",
]
