"""Modules that are asked for their account instead of run: those that have one, and under autocast torch's layers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.tracing.meta_copy import COUNTED
from octo_exp.tracing.recorder import Recorder
from octo_exp.workload import Account, Accounts

_DTYPES = {16: torch.bfloat16, 32: torch.float32}


class _Made(torch.autograd.Function):
    """Inputs that may need a gradient, compute -> compute(), which then needs one too."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Return the result."""
        out: Tensor = args[-1]()
        return out


def install(net: nn.Module, recorder: Recorder, *, autocast: bool) -> None:
    """Have every such module of a meta copy asked where it would run."""
    for module in net.modules():
        if isinstance(module, Accounts):
            state: Callable[[Account], None] = module.account
        elif autocast and isinstance(module, COUNTED):
            # The meta device has no autocast of its own.
            state = _autocast_layer(module)
        else:
            continue
        module.forward = _asked(module, state, recorder, autocast=autocast)  # type: ignore[method-assign]
        recorder.asked.add(module)


def _autocast_layer(layer: nn.Module) -> Callable[[Account], None]:
    return lambda account: account.make(account.multiply_in_bf16(layer, out_bits=16), bits=16)


def _asked(
    module: nn.Module, state: Callable[[Account], None], recorder: Recorder, *, autocast: bool
) -> Callable[..., Tensor]:
    """Return what stands in for the module's `forward`."""

    def forward(*given: Any, **named: Any) -> Tensor:
        # By position or by name: torch calls it `input`, this project's layers `x`.
        inputs = (*given, *named.values())
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise UserError(f"layer {recorder.layer!r}: an account is that of one tensor, got {len(inputs)} arguments")
        return _answer(module, state, recorder, inputs[0], autocast=autocast)

    return forward


def _answer(
    module: nn.Module, state: Callable[[Account], None], recorder: Recorder, x: Tensor, *, autocast: bool
) -> Tensor:
    account, event = recorder.open(module, x, autocast=autocast), recorder.record.events
    with recorder.silence():
        state(account)
    recorder.close(account, event)
    if account.keeps_input:
        recorder.save(x, event)
    if account.y_shape is None and account.is_made:
        return x
    if account.y_shape is None or account.y_bits not in _DTYPES:
        raise UserError(f"layer {account.layer!r}: its account must say what it makes, of 16 or 32 bits an element")
    shape, dtype = account.y_shape, _DTYPES[account.y_bits]
    with recorder.silence():
        made = partial(torch.empty, shape, dtype=dtype, device="meta")
        y: Tensor = _Made.apply(x, *module.parameters(), made)  # type: ignore[no-untyped-call]
    recorder.add_event([x], [y])
    return y
