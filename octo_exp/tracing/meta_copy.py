"""A copy of a network on the meta device: shapes without data, memory or hooks."""

import copy
import difflib
from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from octo_exp.base.errors import UserError

COUNTED = (nn.Conv2d, nn.Linear)


def check_layers(net: nn.Module) -> None:
    """Raise `UserError` for a layer that has no shape yet."""
    for name, module in net.named_modules():
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise UserError(
                f"layer {name!r} ({type(module).__name__}) has no shape yet: run one batch through the net first"
            )


def check_names(net: nn.Module, names: Iterable[str], verb: str) -> None:
    """Raise `UserError` for a name that no module of the net has."""
    modules = dict(net.named_modules())
    for name in sorted(names):
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its first layer is {next(filter(None, modules))!r}"
            raise UserError(f"cannot {verb} {name!r}: the net has no such layer; {hint}")


def check_counted(net: nn.Module, names: Iterable[str]) -> None:
    """Raise `UserError` for a module of the net that has no share of its channels to update."""
    for name in sorted(names):
        module = net.get_submodule(name)
        if not isinstance(module, COUNTED):
            raise UserError(
                f"cannot update sparsely {name!r} ({type(module).__name__}): only nn.Conv2d and nn.Linear have shares; "
                "name those inside"
            )


def meta_copy(net: nn.Module) -> nn.Module:
    """Copy the net with its tensors on the meta device (no data, no memory), without hooks, layers run as float."""
    memo: dict[int, Any] = {}
    for module in net.modules():
        members = vars(module)
        for tensor in (*module._parameters.values(), *module._buffers.values(), *members.values()):
            if isinstance(tensor, torch.Tensor):
                memo[id(tensor)] = _meta_tensor(tensor)
        # A hook would run on the copy as well, and a callback's method would drag its owner, the trainer, along.
        memo.update((id(value), type(value)()) for name, value in members.items() if name.endswith("_hooks"))
        memo.update((id(value), value) for value in members.values() if _is_foreign(value))
    twin = copy.deepcopy(net, memo)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = MethodType(nn.Conv2d.forward, module)  # type: ignore[method-assign]
            module._conv_forward = MethodType(nn.Conv2d._conv_forward, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Linear):
            module.forward = MethodType(nn.Linear.forward, module)  # type: ignore[method-assign]
    return twin


def _is_foreign(value: Any) -> bool:
    """Whether an attribute is a callable from outside of the net, which the copy shares."""
    return callable(value) and not isinstance(getattr(value, "__self__", value), nn.Module)


def _meta_tensor(tensor: torch.Tensor) -> torch.Tensor:
    twin = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, requires_grad=tensor.requires_grad)
    return twin.requires_grad_(tensor.requires_grad)
