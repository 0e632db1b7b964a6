"""Spaces of machines and searches of them."""

from octo_exp.hw.scalesim import read_topology
from octo_exp.hw.search.genetic import Genetic
from octo_exp.hw.search.objectives import Objectives
from octo_exp.hw.search.scan import Problem, Scan
from octo_exp.hw.search.space import Space
from tests.hw.helpers import GOLDEN, machine, workload

LENET = workload(*read_topology(GOLDEN / "lenet5.csv", "conv"), batch_size=1)
LENET_TRAINING = workload(*read_topology(GOLDEN / "lenet5_train_b4_col2im_gemm.csv", "gemm"))
FLOWS = ["os", "ws", "is"]
SMALL = {"rows": {"from": 1, "to": 12}, "cols": {"from": 1, "to": 12}, "dataflow": FLOWS}
LARGE = {"rows": {"from": 1, "to": 128}, "cols": {"from": 1, "to": 128}, "dataflow": FLOWS}


def problem(axes, step=LENET_TRAINING, *, names=("cycles",), convention="exact", **constraints):
    return Problem(Space(machine(), axes, constraints), Objectives(names, step, convention=convention, energy=None))


def scan(given, *, sample=None, seed=0, limit=10**6, top=20):
    return Scan(given, sample=sample, seed=seed, limit=limit, top=top)


def genetic(given, *, budget, seed=0):
    return Genetic(given, budget=budget, seed=seed)
