"""From a network to its workload: the one bridge between modules and the cost model.

The network runs once on the meta device, in training mode and without data, while a recorder notes the shapes that meet
each `nn.Conv2d` and `nn.Linear`, every other operation, and what autograd saves. Autograd's own bookkeeping says which
gradients a step computes: an input that depends on nothing trainable needs none, which drops grad_input of the first
layer and of whatever follows only frozen ones. The loss is not in the step.

A module that states its own account (`octo_exp.workload.Accounts`: this project's layers, and anybody's) is asked
instead of run; a network that states its whole step (`AccountsForSteps`: an int8 graph) does not run at all.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import check_number
from octo_exp.tracing.ask import install
from octo_exp.tracing.buffers import buffers_of
from octo_exp.tracing.meta_copy import check_counted, check_layers, check_names, meta_copy
from octo_exp.tracing.optimizer import SGD, optimizer_cost
from octo_exp.tracing.recorder import Recorder
from octo_exp.tracing.vector import event_work, merged, optimizer_work, trained_parameters, vector_work
from octo_exp.workload import (
    GRAD_INPUT_FORMS,
    Account,
    AccountsForSteps,
    Gemm,
    OptimizerCost,
    Record,
    VectorWork,
    Workload,
    gemms_of,
)

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

    The net is neither changed nor run on data. Subclasses of `nn.Conv2d` and `nn.Linear` without an account are traced
    by their float forward; an attribute `operand_bits`, role -> (bits_a, bits_b), tells their operands' widths.
    A layer that is called again appears again, as `name#2`.

    Args:
        net: any module whose MACs lie in `nn.Conv2d` (padding, stride, dilation, groups), `nn.Linear`, and modules
            with an account; or one that states its whole step.
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
    work: list[VectorWork] = []
    if isinstance(net, AccountsForSteps):
        if frozen or shares or autocast:
            raise UserError(
                f"{type(net).__name__} has its own arithmetic and trains what update= says: leave out frozen and "
                "sparse, and set trainer.precision=32-true"
            )
        record = net.step_account((batch_size, *input_shape))
    else:
        net, record, work = _recorded(net, (batch_size, *input_shape), frozen, shares, autocast=autocast)
    gemms = [_gemms(account, grad_input_form, record.shares) for _, account in record.accounts]
    if not any(gemms):
        raise UserError(f"{type(net).__name__} runs no nn.Conv2d and no nn.Linear: there is nothing to price")
    work += vector_work(record, grad_input_form)
    return Workload(
        gemms=tuple(gemm for found in gemms for gemm in found),
        vector=merged((*work, *optimizer_work(record, optimizer))),
        buffers=buffers_of(net, record, gemms, optimizer.state_bytes),
        batch_size=batch_size,
        grad_input_form=grad_input_form,
    )


def _recorded(
    net: nn.Module, shape: tuple[int, ...], frozen: frozenset[str], shares: dict[str, float], *, autocast: bool
) -> tuple[nn.Module, Record, list[VectorWork]]:
    """Run a meta copy of the net; return it, what it did, and the work of single operations."""
    check_layers(net)
    check_names(net, frozen, "freeze")
    check_names(net, shares, "update sparsely")
    check_counted(net, shares)
    # A trainer's hooks may run inside inference mode, where nothing would ever require a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        twin = meta_copy(net).train()
        for name in frozen:
            twin.get_submodule(name).requires_grad_(False)
        recorder = Recorder(twin)
        install(twin, recorder, autocast=autocast)
        record = recorder.run(shape)
    record.shares = shares
    record.trained = trained_parameters(twin, record)
    return twin, record, [item for event in recorder.events for item in event_work(event)]


def _gemms(account: Account, grad_input_form: str, shares: Mapping[str, float]) -> list[Gemm]:
    products = (gemm for product in account.products for gemm in gemms_of(product, grad_input_form, shares))
    return [*products, *account.gemms]
