"""What lies in memory during a training step, and from which event to which.

Events of a forward pass of T operations: t = 0 .. T-1, their backward passes 2T-1-t, and the update 2T. A tensor lives
from the operation that makes it to the last that uses it, or to the backward pass of the operation that first saved
it; the gradient of a tensor lives from the backward pass of its last use to that of its making; a parameter's gradient
from its layer's backward pass to the update. Products that an integer layer makes on the way (accumulators, dcol) are
counted for one image at a time, gradients as codes for the whole batch.
"""

import math
from collections.abc import Mapping, Sequence

from octo_exp.trace.recorded import Record
from octo_exp.trace.vector import FLOAT_BYTES, trained_parameters
from octo_exp.workload import Buffer, Gemm


def buffers_of(
    record: Record, gemms: Sequence[Gemm], shares: Mapping[str, float], state_bytes: float
) -> tuple[Buffer, ...]:
    """Every buffer of the step; see `Buffer` for the kinds."""
    end = 2 * len(record.events)
    return (*_owned(record, shares, state_bytes, end), *_activations(record, end), *_workspace(record, gemms, end))


def _owned(record: Record, shares: Mapping[str, float], state_bytes: float, end: int) -> list[Buffer]:
    """Parameters and statistics, gradients of parameters, optimizer state."""
    found = []
    for name, module in record.net.named_modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        size = sum(tensor.numel() * tensor.element_size() for tensor in own)
        if size:
            found.append(Buffer(layer=name, kind="weight", bytes=size, first=0, last=end))
    for layer, elements in trained_parameters(record, shares).items():
        begin = end - 1 - record.first_event.get(layer, 0)
        size = elements * FLOAT_BYTES
        found.append(Buffer(layer=layer, kind="gradient", bytes=size, first=begin, last=end))
        if state_bytes:
            state = math.ceil(elements * state_bytes)
            found.append(Buffer(layer=layer, kind="optimizer", bytes=state, first=0, last=end))
    return found


def _activations(record: Record, end: int) -> list[Buffer]:
    """Tensors of the forward pass and their gradients."""
    found = []
    for index, storage in enumerate(record.storages.values()):
        if not storage.bytes:
            continue
        if storage.saved is not None:
            kind = "mask" if storage.is_mask else "activation"
            last = end - 1 - storage.saved
            owner = storage.saved_by
        else:
            # The batch itself stays until the step is over.
            kind, last, owner = "workspace", storage.last if index else end - 1, storage.layer
        found.append(
            Buffer(
                layer=owner,
                kind=kind,
                bytes=storage.bytes,
                first=storage.first,
                last=last,
                kept=storage.saved is not None,
            )
        )
        if index and storage.requires_grad:
            first, last = end - 1 - storage.last, end - 1 - storage.first
            found.append(Buffer(layer=storage.layer, kind="gradient", bytes=storage.bytes, first=first, last=last))
    return found


def _workspace(record: Record, gemms: Sequence[Gemm], end: int) -> list[Buffer]:
    """What stand-ins keep and use on the way, and one image's products of the integer GEMMs."""
    found = []
    for item in record.kept:
        mirror = end - 1 - item.event
        first = mirror if item.backward else item.event
        last = mirror if item.backward or item.kept else item.event
        found.append(Buffer(layer=item.layer, kind=item.kind, bytes=item.bytes, first=first, last=last, kept=item.kept))
    event_of = {call.layer: call.event for call in record.calls}
    batch = {call.layer: call.input_shape[0] for call in record.calls}
    for gemm in gemms:
        if gemm.width != "int8" or gemm.role == "grad_weight":
            continue
        event = event_of[gemm.layer] if gemm.role == "output" else end - 1 - event_of[gemm.layer]
        size = -(-gemm.m // batch[gemm.layer]) * gemm.n * gemm.count * 4
        found.append(Buffer(layer=gemm.layer, kind="workspace", bytes=size, first=event, last=event))
    return found
