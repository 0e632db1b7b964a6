"""The workload of a microcontroller graph, found from its shapes: no data, no run, the graph untouched.

What trains is what `update` and `requires_grad` say. GEMMs are those of the package's table: int8 times int8 in the
forward pass, whose sums leave as int8; in the backward pass float32 gradients times int8, in float32, for every layer
after the first trained one; grad_weight of the kept input channels only (depthwise: of the kept channels). In the mode
`float_order` all operands are float32. Work beside them: `mcu_work`.

Memory is what a run holds: weights and biases are float32 masters, frozen ones as well, in both `update.mode`s, and
become int8 codes while their layer runs; activations are int8; kept for the backward pass are what `mcu.ops` keeps:
bits of what was not clamped where a gradient passes, int8 codes of the kept channels where a weight trains, and the
float head's input. Gradients and optimizer state are counted for trained values alone, as a device would hold them: the
run's own tensors have zeros for the channels that are not kept.
"""

from dataclasses import replace

from octo_exp.base.errors import UserError
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.trace.buffers import buffers_of
from octo_exp.trace.gemms import gemms_of
from octo_exp.trace.graph_optimizer import scaling_work
from octo_exp.trace.graph_walk import Value, Walk
from octo_exp.trace.meta_copy import meta_copy
from octo_exp.trace.optimizer import OptimizerCost
from octo_exp.trace.vector import FLOAT_BYTES, merged, optimizer_work, vector_work
from octo_exp.workload import Buffer, Gemm, Workload


def trace_graph(
    net: McuNet, input_shape: tuple[int, ...], *, batch_size: int, grad_input_form: str, optimizer: OptimizerCost
) -> Workload:
    """Return the training step of `net` on `batch_size` images [C, H, W]; UserError where they do not fit."""
    image = net.spec.image
    wanted = (image.channels, image.size, image.size)
    if input_shape != wanted:
        raise UserError(f"the graph takes images {list(wanted)}, got {list(input_shape)}; resize the data's images")
    walk = Walk(_twin(net), (batch_size, *input_shape))
    record, shares = walk.record, walk.shares
    gemms = tuple(_wide(gemm) for call in record.calls for gemm in gemms_of(call, grad_input_form, shares))
    vector = (
        *vector_work(record, grad_input_form),
        *optimizer_work(record, shares, optimizer),
        *scaling_work(record, shares, optimizer),
    )
    end = 2 * len(record.events)
    owned = buffers_of(record, gemms, shares, optimizer.state_bytes)
    return Workload(
        gemms=gemms,
        vector=merged(vector),
        buffers=(*owned, *(buffer for value in walk.values for buffer in _tensors(value, end))),
        batch_size=batch_size,
        grad_input_form=grad_input_form,
    )


def _twin(net: McuNet) -> McuNet:
    """A copy on the meta device whose parameters require gradients where they are trained."""
    twin = meta_copy(net)
    for conv in twin.convs:
        conv.weight.requires_grad_(conv.weight.requires_grad and conv.update.train_weight)
        conv.bias.requires_grad_(conv.bias.requires_grad and conv.update.train_bias)
    return twin


def _wide(gemm: Gemm) -> Gemm:
    """Sums leave the forward pass as codes, gradients leave as float32."""
    return replace(gemm, bits_out=32) if gemm.role == "grad_input" else gemm


def _tensors(value: Value, end: int) -> list[Buffer]:
    """A tensor between two steps, and its gradient."""
    last, kind, layer = value.last, "workspace", value.layer
    if value.saved is not None:
        last, kind, layer = end - 1 - value.saved, "activation", value.saved_by
    elif value.first == 0:
        # The batch itself stays until the step is over.
        last = end - 1
    kept = value.saved is not None
    size = value.width * value.elements
    found = [Buffer(layer=layer, kind=kind, bytes=size, first=value.first, last=last, kept=kept)]
    if value.has_gradient:
        first, last = end - 1 - value.last, end - 1 - value.first
        size = FLOAT_BYTES * value.elements
        found.append(Buffer(layer=value.layer, kind="gradient", bytes=size, first=first, last=last))
    return found
