"""What the optimizers of an update cost: their own step, and for convolutions scaled gradients and whole masters."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

from octo_exp.graph.train.modules import McuConv2d
from octo_exp.graph.train.update import UpdateAdam, UpdateSGD
from octo_exp.trace.optimizer import OptimizerCost, optimizer_cost
from octo_exp.trace.recorded import Record
from octo_exp.trace.vector import FLOAT_BYTES, trained_parameters
from octo_exp.workload import VectorWork


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCost(OptimizerCost):
    """Of convolutions also: for each trained value, operations beside the optimizer's, each a pass over the tensor."""

    conv_operations: float


def cost_of(optimizer: Optimizer) -> OptimizerCost:
    """Cost of any optimizer; `UserError` for one that cannot be priced."""
    if not isinstance(optimizer, UpdateSGD | UpdateAdam):
        return optimizer_cost(optimizer)
    # Its convolutions bind it to one network; the plain one of the same groups runs on its own.
    plain = optimizer_cost(optimizer.plain([dict(group) for group in optimizer.param_groups]))
    # QAS multiplies; integers are rounded and clamped.
    more = 1 * optimizer.qas + 2 * optimizer.strict_int8
    return UpdateCost(operations=plain.operations, state_bytes=plain.state_bytes, conv_operations=more)


def scaling_work(record: Record, shares: Mapping[str, float], optimizer: OptimizerCost) -> Iterator[VectorWork]:
    """What an update does to the trained values of convolutions beside the optimizer's own step."""
    more = optimizer.conv_operations if isinstance(optimizer, UpdateCost) else 0
    if not more:
        return
    for layer, elements in trained_parameters(record, shares).items():
        if isinstance(record.net.get_submodule(layer), McuConv2d):
            operations = math.ceil(elements * more)
            yield VectorWork(
                layer=layer,
                role="grad_weight",
                kind="optimizer",
                operations=operations,
                bytes_read=FLOAT_BYTES * operations,
                bytes_written=FLOAT_BYTES * operations,
            )
