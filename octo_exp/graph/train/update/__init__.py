"""What of an int8 network is trained and how: sparse update, QAS, the optimizers, the memory account."""

from octo_exp.graph.train.update.extra_memory import LayerMemory, UpdateMemory, update_memory
from octo_exp.graph.train.update.optimizers import MODES, UpdateAdam, UpdateSGD, UpdateStep
from octo_exp.graph.train.update.rule import OPTIMIZERS, UpdateRule
from octo_exp.graph.train.update.selection import LayerRule, SparseUpdate

__all__ = [
    "MODES",
    "OPTIMIZERS",
    "LayerMemory",
    "LayerRule",
    "SparseUpdate",
    "UpdateAdam",
    "UpdateMemory",
    "UpdateRule",
    "UpdateSGD",
    "UpdateStep",
    "update_memory",
]
