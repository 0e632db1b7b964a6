"""Work of the vector unit: what a training step does element by element, beside its GEMMs.

Operations on single elements; the counts per element are this project's own:

    quantize     4: range, scale, round, clamp; reads 4 bytes, writes one; drawn noise and PRC add DRAW_OPS, CLIP_OPS
    rescale      2 in the forward pass (scale, offset), 1 in the backward passes; of results as they leave the array
    elementwise  1 of each kernel that torch runs, and as many again in the backward pass
    pool, mean   1 for every input element (a comparison or an addition); the backward pass as many
    norm         4 (mean, variance, normalize, scale); the backward pass 8
    col2im       1 addition for every element of dcol
    optimizer    as many as its kernels touch elements, see `optimizer_cost`

What a fused block does to its own GEMM's result moves no bytes but its mask's; the gradient that it spreads over its
windows is written out. dcol is written and read back, an image at a time, as if no part of it stayed on chip.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from octo_exp.trace.gemms import gemms_of, is_unfolded, trained_weights
from octo_exp.trace.optimizer import OptimizerCost
from octo_exp.trace.recorded import Call, Event, Record
from octo_exp.workload import VectorWork

QUANTIZE_OPS = 4
RESCALE_OPS = 2
NORM_OPS, NORM_BACKWARD_OPS = 4, 8
FLOAT_BYTES = 4
# More for each element that is quantised: Philox4x32-10 gives four numbers for ten rounds of six operations; PRC's
# gaussian sums the tensor and its square, its learned range the error of every code.
DRAW_OPS = 15
CLIP_OPS = {"ratio": 0, "gaussian": 3, "learned": 4}
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
    """The work of single operations, of counted layers, and what stand-ins said of theirs."""
    for event in record.events:
        if event is not None:
            yield from _of_event(event)
    yield from record.work
    for call in record.calls:
        yield from _of_call(call, grad_input_form)


def optimizer_work(record: Record, shares: Mapping[str, float], optimizer: OptimizerCost) -> Iterator[VectorWork]:
    """The update of every trained parameter, by layer."""
    for layer, elements in trained_parameters(record, shares).items():
        yield VectorWork(
            layer=layer,
            role="grad_weight",
            kind="optimizer",
            operations=math.ceil(elements * optimizer.operations),
            bytes_read=math.ceil(elements * (2 * FLOAT_BYTES + optimizer.state_bytes)),
            bytes_written=math.ceil(elements * (FLOAT_BYTES + optimizer.state_bytes)),
        )


def trained_parameters(record: Record, shares: Mapping[str, float]) -> dict[str, int]:
    """Layer -> elements of its parameters that a step updates; a sparse update counts its share of the weight.

    Parameters of a module that is not called itself, such as a compensator, are those of the layer around it.
    """
    sparse = {call.module.weight: trained_weights(call, shares) for call in record.calls}
    found: dict[str, int] = {}
    for name, parameter in record.net.named_parameters():
        elements = sparse.get(parameter, parameter.numel()) if parameter.requires_grad else 0
        if elements:
            layer = running_layer(record, name.rpartition(".")[0])
            found[layer] = found.get(layer, 0) + elements
    return found


def running_layer(record: Record, layer: str) -> str:
    """The layer itself if it was called, else the nearest one around it that was."""
    while layer and layer not in record.first_event:
        layer = layer.rpartition(".")[0]
    return layer


def _of_event(event: Event) -> Iterator[VectorWork]:
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


def _of_call(call: Call, grad_input_form: str) -> Iterator[VectorWork]:
    results = math.prod(call.output_shape)
    bias = call.module.bias
    # What int8 products are rescaled with holds the bias.
    if bias is not None and max(call.bits.get("output", (32,))) > 8:
        yield VectorWork(
            layer=call.layer, role="output", kind="elementwise", operations=results, bytes_read=0, bytes_written=0
        )
    if bias is not None and bias.requires_grad:
        yield VectorWork(
            layer=call.layer,
            role="grad_weight",
            kind="elementwise",
            operations=call.out_elements,
            bytes_read=call.out_elements * call.out_bits // 8,
            bytes_written=0,
        )
    if grad_input_form == "col2im" and call.needs_grad_input and is_unfolded(call.module):
        (columns,) = (g.m * g.n * g.count for g in gemms_of(call, grad_input_form, {}) if g.role == "grad_input")
        yield VectorWork(
            layer=call.layer,
            role="grad_input",
            kind="col2im",
            operations=columns,
            bytes_read=columns * FLOAT_BYTES,
            bytes_written=math.prod(call.input_shape) * FLOAT_BYTES,
        )


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
