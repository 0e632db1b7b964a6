"""From a network to its workload: the one bridge between modules and the cost model.

The network runs once on the meta device, in training mode and without data, while a recorder notes the shapes that meet
each `nn.Conv2d` and `nn.Linear`, every other operation, and what autograd saves. Autograd's own bookkeeping says which
gradients a step computes: an input that depends on nothing trainable needs none, which drops grad_input of the first
layer and of whatever follows only frozen ones. A convolution of B images [Ci, H, W] to [Co, OH, OW], kernel kh x kw,
g groups, becomes g GEMMs [M, K] x [K, N]:

    role                   M              N              K
    output                 B*OH*OW        Co/g           Ci/g*kh*kw
    grad_input, col2im     B*OH*OW        Ci/g*kh*kw     Co/g
    grad_input, im2col     B*H*W          Ci/g           Co/g*kh*kw      (the implicit form)
    grad_weight            Ci/g*kh*kw     Co/g           B*OH*OW

A linear layer is a 1x1 convolution whose positions are all extents but the last. The loss is not in the step.

A microcontroller graph does not run: its shapes say it all, see `mcu`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import check_number
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.trace.buffers import buffers_of
from octo_exp.trace.gemms import gemms_of
from octo_exp.trace.graph_optimizer import cost_of as optimizer_cost
from octo_exp.trace.graph_step import trace_graph
from octo_exp.trace.meta_copy import check_counted, check_layers, check_names, freeze, meta_copy
from octo_exp.trace.optimizer import SGD, OptimizerCost
from octo_exp.trace.recorder import Recorder
from octo_exp.trace.stand_ins import install
from octo_exp.trace.vector import merged, optimizer_work, vector_work
from octo_exp.workload import GRAD_INPUT_FORMS, Workload

# A step of more would pass the bytes that torch can give a shape; the cost model refuses far fewer, by the layer.
_MOST_IMAGES = 2**32

__all__ = ["SGD", "OptimizerCost", "optimizer_cost", "trace"]


def trace(
    net: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_size: int,
    grad_input_form: str,
    frozen: frozenset[str] = frozenset(),
    sparse: Mapping[str, float] | None = None,
    optimizer: OptimizerCost = SGD,
    autocast: bool = False,
) -> Workload:
    """Return what one training step of `net` on `batch_size` inputs of shape `input_shape` computes and keeps.

    The net is neither changed nor run on data. Quantized layers are subclasses of `nn.Conv2d` and `nn.Linear` and are
    traced by their float forward; an attribute `operand_bits`, role -> (bits_a, bits_b), tells their operands' widths.
    A layer that is called again appears again, as `name#2`.

    Args:
        net: a `McuNet`, or any module whose MACs lie in `nn.Conv2d` (padding, stride, dilation, groups) and
            `nn.Linear`.
        input_shape: shape of one input, without the batch, e.g. (C, H, W).
        batch_size: inputs in a step.
        grad_input_form: col2im | im2col.
        frozen: names of modules whose parameters are not trained, besides those that do not require gradients.
        sparse: sparse update: layer -> the share, 0 to 1, of its input channels whose weights are trained (for a
            depthwise layer: of its channels), rounded down; its bias is trained whole.
        optimizer: what the update costs.
        autocast: whether float layers multiply in bf16, as under Lightning's bf16-mixed.

    Raises:
        UserError: a layer or an operation that is not counted (with its share of the MACs), a name in `frozen` or
            `sparse` that the net lacks, an input shape that does not fit.

    """
    if grad_input_form not in GRAD_INPUT_FORMS:
        raise UserError(
            f"grad_input_form must be one of {', '.join(GRAD_INPUT_FORMS)} (the implicit form), got {grad_input_form!r}"
        )
    check_number("trace", "batch_size", batch_size, whole=True, high=_MOST_IMAGES)
    shares = dict(sparse or {})
    if isinstance(net, McuNet):
        if frozen or shares or autocast:
            raise UserError(
                "a microcontroller graph has its own arithmetic and trains what update= says: leave out frozen and "
                "sparse, and set trainer.precision=32-true"
            )
        form = grad_input_form
        return trace_graph(net, tuple(input_shape), batch_size=batch_size, grad_input_form=form, optimizer=optimizer)
    check_layers(net)
    check_names(net, frozen, "freeze")
    check_names(net, shares, "update sparsely")
    check_counted(net, shares)
    # A trainer's hooks may run inside inference mode, where nothing would ever require a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        twin = meta_copy(net).train()
        freeze(twin, frozen)
        recorder = Recorder(twin)
        install(twin, recorder, autocast=autocast)
        record = recorder.run((batch_size, *input_shape))
    gemms = tuple(gemm for call in record.calls for gemm in gemms_of(call, grad_input_form, shares))
    if not gemms:
        raise UserError(f"{type(net).__name__} runs no nn.Conv2d and no nn.Linear: there is nothing to price")
    work = merged((*vector_work(record, grad_input_form), *optimizer_work(record, shares, optimizer)))
    return Workload(
        gemms=gemms,
        vector=work,
        buffers=buffers_of(record, gemms, shares, optimizer.state_bytes),
        batch_size=batch_size,
        grad_input_form=grad_input_form,
    )
