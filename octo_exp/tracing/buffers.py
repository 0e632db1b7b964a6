"""What lies in memory during a training step, and from which event to which.

Events of a forward pass of T operations: t = 0 .. T-1, their backward passes 2T-1-t, and the update 2T. A tensor lives
from the operation that makes it to the last that uses it, or to the backward pass of the operation that first saved
it; the gradient of a tensor lives from the backward pass of its last use to that of its making; a parameter's gradient
from its layer's backward pass to the update. Products that an integer layer makes on the way (accumulators, dcol) are
counted for one image at a time, gradients as codes for the whole batch.
"""

import math
from collections.abc import Iterator, Sequence

from torch import nn

from octo_exp.workload import FLOAT_BYTES, Buffer, Gemm, Record


def buffers_of(
    net: nn.Module, record: Record, gemms: Sequence[Sequence[Gemm]], state_bytes: float
) -> tuple[Buffer, ...]:
    """Every buffer of the step; `gemms`: those of each account. See `Buffer` for the kinds."""
    end = 2 * record.events
    return (*_owned(net, record, state_bytes, end), *_tensors(record, end), *_workspace(record, gemms, end))


def _owned(net: nn.Module, record: Record, state_bytes: float, end: int) -> Iterator[Buffer]:
    """Parameters and statistics, gradients of parameters, optimizer state."""
    for name, module in net.named_modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        size = sum(tensor.numel() * tensor.element_size() for tensor in own)
        if size:
            yield Buffer(layer=name, kind="weight", bytes=size, first=0, last=end)
    for layer, elements in record.trained.items():
        begin = end - 1 - record.first_event.get(layer, 0)
        yield Buffer(layer=layer, kind="gradient", bytes=elements * FLOAT_BYTES, first=begin, last=end)
        if state_bytes:
            state = math.ceil(elements * state_bytes)
            yield Buffer(layer=layer, kind="optimizer", bytes=state, first=0, last=end)


def _tensors(record: Record, end: int) -> Iterator[Buffer]:
    """Tensors of the forward pass and their gradients."""
    for index, value in enumerate(record.values):
        if not value.bytes:
            continue
        # The batch itself stays until the step is over.
        kind, last, owner = "workspace", value.last if index else end - 1, value.layer
        kept = value.saved is not None
        if value.saved is not None:
            kind = "mask" if value.is_mask else "activation"
            last, owner = end - 1 - value.saved, value.saved_by
        yield Buffer(layer=owner, kind=kind, bytes=value.bytes, first=value.first, last=last, kept=kept)
        if index and value.gradient_bytes:
            first, last = end - 1 - value.last, end - 1 - value.first
            yield Buffer(layer=value.layer, kind="gradient", bytes=value.gradient_bytes, first=first, last=last)


def _workspace(record: Record, gemms: Sequence[Sequence[Gemm]], end: int) -> Iterator[Buffer]:
    """What accounts keep and use on the way, and one image's products of the integer GEMMs."""
    for event, account in record.accounts:
        mirror = end - 1 - event
        for item in account.held:
            first = mirror if item.backward else event
            last = mirror if item.backward or item.kept else event
            yield Buffer(layer=account.layer, kind=item.kind, bytes=item.bytes, first=first, last=last, kept=item.kept)
    for (event, account), found in zip(record.accounts, gemms, strict=True):
        for gemm in found:
            if gemm.width == "int8" and gemm.role != "grad_weight":
                at = event if gemm.role == "output" else end - 1 - event
                size = -(-gemm.m * gemm.n * gemm.count // account.x_shape[0]) * 4
                yield Buffer(layer=gemm.layer, kind="workspace", bytes=size, first=at, last=at)
