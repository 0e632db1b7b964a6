"""Work of the vector unit, by layer: of single operations, of accounts, of products, and of the optimizer.

Operations are those of `octo_exp.workload.account`; a mean and a sum count as pooling does.
"""

import math
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from octo_exp.tracing.recorder import Event
from octo_exp.workload import (
    FLOAT_BYTES,
    NORM_BACKWARD_OPS,
    NORM_OPS,
    OptimizerCost,
    Record,
    VectorWork,
    trained_weights,
    work_of,
)

_REDUCTIONS = ("mean", "sum")


def merged(work: Iterable[VectorWork]) -> tuple[VectorWork, ...]:
    """One entry for each layer, role and kind, in the order in which they first appear."""
    found: dict[tuple[str, str, str], VectorWork] = {}
    for item in work:
        key = (item.layer, item.role, item.kind)
        before = found.get(key)
        found[key] = item if before is None else before + item
    return tuple(found.values())


def vector_work(record: Record, grad_input_form: str) -> Iterator[VectorWork]:
    """What accounts say of their layers, then the work of their products."""
    for _, account in record.accounts:
        yield from account.work
    for _, account in record.accounts:
        for product in account.products:
            yield from work_of(product, grad_input_form)


def optimizer_work(record: Record, optimizer: OptimizerCost) -> Iterator[VectorWork]:
    """The update of every trained parameter, by layer; then what it does to those that stand for codes."""
    for layer, elements in record.trained.items():
        yield VectorWork(
            layer=layer,
            role="grad_weight",
            kind="optimizer",
            operations=math.ceil(elements * optimizer.operations),
            bytes_read=math.ceil(elements * (2 * FLOAT_BYTES + optimizer.state_bytes)),
            bytes_written=math.ceil(elements * (FLOAT_BYTES + optimizer.state_bytes)),
        )
    for layer, elements in record.trained.items():
        operations = math.ceil(elements * optimizer.coded_operations)
        if operations and layer in record.coded:
            size = FLOAT_BYTES * operations
            facts = {"operations": operations, "bytes_read": size, "bytes_written": size}
            yield VectorWork(layer=layer, role="grad_weight", kind="optimizer", **facts)


def trained_parameters(net: nn.Module, record: Record) -> dict[str, int]:
    """Layer -> elements of its parameters that a step updates; a sparse update counts its share of the weight.

    Parameters of a module that is not called itself, such as a compensator, are those of the layer around it.
    """
    sparse = {}
    for _, account in record.accounts:
        for product in account.products if account.layer in record.shares else ():
            sparse[net.get_submodule(account.layer).weight] = trained_weights(product, record.shares)
    found: dict[str, int] = {}
    for name, parameter in net.named_parameters():
        elements = sparse.get(parameter, parameter.numel()) if parameter.requires_grad else 0
        if elements:
            layer = _running_layer(record, name.rpartition(".")[0])
            found[layer] = found.get(layer, 0) + elements
    return found


def _running_layer(record: Record, layer: str) -> str:
    """The layer itself if it was called, else the nearest one around it that was."""
    while layer and layer not in record.first_event:
        layer = layer.rpartition(".")[0]
    return layer


def event_work(event: Event) -> Iterator[VectorWork]:
    """The work of one operation, and of its backward pass."""
    if event.name == "gemm" or "empty" in event.name:
        return
    largest = max(tensor.numel() for tensor in (*event.inputs, *event.outputs))
    kind, forward, backward = "elementwise", event.outputs[0].numel(), event.outputs[0].numel()
    if "pool" in event.name:
        kind, forward, backward = "pool", largest, largest
    elif event.name in _REDUCTIONS:
        forward = backward = largest
    elif "norm" in event.name:
        kind, forward, backward = "norm", NORM_OPS * largest, NORM_BACKWARD_OPS * largest
    read, written = _bytes(event.inputs), _bytes(event.outputs)
    shared = {"layer": event.layer, "kind": kind}
    yield VectorWork(role="output", operations=forward, bytes_read=read, bytes_written=written, **shared)
    if any(tensor.requires_grad for tensor in event.inputs):
        # Backward: the gradient and what was saved are read, the inputs' gradient is written.
        yield VectorWork(role="grad_input", operations=backward, bytes_read=read, bytes_written=written, **shared)


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
