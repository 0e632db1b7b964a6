"""A network as plain torch layers: parametrised weights are their values, subclasses their classes, hooks gone."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.nn.fold import make_plain

_KINDS = (nn.Conv2d, nn.Linear)
# What a subclass must leave as it is to compute what its torch class does.
_COMPUTING = ("forward", "_conv_forward", "__call__")


def plain_copy(net: nn.Module) -> nn.Module:
    """Return a copy in eval mode that computes what the net does, with layers of torch's own; hooks are left on it."""
    # Weights that a hook has computed have a history, which torch does not copy.
    computed = {id(t): t.detach().clone() for m in net.modules() for t in vars(m).values() if isinstance(t, Tensor)}
    copied = copy.deepcopy(net, computed).eval()
    with torch.no_grad():
        make_plain(copied)
    for module in copied.modules():
        kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
        if kind is not None and all(
            getattr(type(module), name, None) is getattr(kind, name, None) for name in _COMPUTING
        ):
            module.__class__ = kind
    return copied


def without_hooks(net: nn.Module, images: Tensor) -> None:
    """Take away the forward hooks of a net that only look on; UserError names one that changes what passes.

    Args:
        net: changed in place.
        images: which the net is run on, to see what its hooks do.

    """
    hooks = [(name, kind) for name, module in net.named_modules() for kind in _hooks_of(module)]
    if not hooks:
        return
    for name, kind in hooks:
        for key, hook in kind.items():
            kind[key] = _watched(name, hook)
    net(images)
    for _, kind in hooks:
        kind.clear()


def _hooks_of(module: nn.Module) -> list[dict[int, Callable[..., Any]]]:
    return [hooks for hooks in (module._forward_pre_hooks, module._forward_hooks) if hooks]


def _watched(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*arguments: Any, **keywords: Any) -> None:
        passing = _tensors(arguments)
        before = [tensor.clone() for tensor in passing]
        if hook(*arguments, **keywords) is not None or not all(map(torch.equal, passing, before)):
            raise UserError(
                f"{name or 'the network'}: its forward hook changes what passes, which an int8 graph cannot follow; "
                "remove the hook, or write it as a layer"
            )

    return watched


def _tensors(arguments: tuple[Any, ...]) -> list[Tensor]:
    """Tensors among a hook's arguments: inputs in a tuple, output."""
    flat = [item for value in arguments for item in (value if isinstance(value, tuple) else (value,))]
    return [item for item in flat if isinstance(item, Tensor)]
