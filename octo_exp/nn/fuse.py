"""Find what follows the layers of a plain net, ReLU and max pooling, and let it keep bits instead of floats.

In an nn.Sequential, ReLU becomes an `Activation`, a max pool right behind it part of that, and a quantised layer right
before it does both in its epilogue. Elsewhere a ReLU becomes an `Activation` by itself. Names of layers and parameters
stay, and what hooks see: a step whose input or output one of them looks at stays by itself.
"""

from collections import Counter
from typing import TypeGuard

from torch import nn

from octo_exp.nn.activation import Activation
from octo_exp.nn.become import become
from octo_exp.nn.float_block import FloatConv2d, FloatLinear
from octo_exp.nn.layers import QuantConv2d, QuantLayer
from octo_exp.nn.norm import NORMS
from octo_exp.workload import Epilogue


def fuse(net: nn.Module, *, impl: str, norm_input: str) -> None:
    """Swap the net's ReLU, max pool, norm and float linear modules in place; norms save as `norm_input` says.

    norm_input: fp32 (the norms stay torch's own) | bf16 | int8.
    """
    # A layer that stands in two places may be followed by ReLU in one of them only.
    places = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    for parent in list(net.modules()):
        if type(parent) is nn.Sequential:
            _fuse_sequence(parent, impl, {module for module, count in places.items() if count > 1})
    _replace(net, impl, norm_input)


def block_of(net: nn.Module, name: str) -> list[nn.Module]:
    """Return the layer and what `fuse` would add to it: ReLU, max pool."""
    parent_name, _, child = name.rpartition(".")
    parent = net.get_submodule(parent_name)
    block = [net.get_submodule(name)]
    if type(parent) is nn.Sequential:
        names = list(parent._modules)
        following = [parent._modules[n] for n in names[names.index(child) + 1 :]][:2]
        if following and _is_relu(following[0]):
            block.append(following.pop(0))
        if following and _pool_size(following[0]) is not None:
            block.append(following[0])
    return block


def _pool_size(module: nn.Module | None) -> int | None:
    """k of a max pool over k x k windows that do not overlap, or None for any other module."""
    if type(module) is not nn.MaxPool2d or module.return_indices or module.ceil_mode or _is_watched(module):
        return None
    kernel, stride, padding, dilation = (
        set(v) if isinstance(v, tuple) else {v}
        for v in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    plain = len(kernel) == 1 and kernel == stride and padding == {0} and dilation == {1}
    return kernel.pop() if plain and 1 < max(kernel) <= 11 else None


def _fuse_sequence(sequence: nn.Sequential, impl: str, shared: set[nn.Module]) -> None:
    modules = list(sequence)
    for i, module in enumerate(modules):
        following = modules[i + 1] if i + 1 < len(modules) else None
        is_relu = _is_relu(module)
        pool = _pool_size(following) if is_relu else _pool_size(module)
        if not is_relu and pool is None:
            continue
        steps = Epilogue(relu=is_relu, pool=pool or 1)
        activation = Activation(steps, impl=impl)
        before = modules[i - 1] if i > 0 else None
        if type(before) is nn.Conv2d and before.padding_mode == "zeros" and not isinstance(before.padding, str):
            FloatConv2d.convert(before, impl=impl)
        if before not in shared and _can_absorb(before, steps):
            before.steps, activation.absorbed = steps, True
        sequence[i] = modules[i] = activation
        if is_relu and pool is not None:
            sequence[i + 1] = modules[i + 1] = nn.Identity()


def _is_watched(module: nn.Module, *, inputs: bool = True) -> bool:
    """Whether a hook sees the module's output or the gradient of it, or (inputs) its input."""
    hooks = (module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or (inputs and bool(module._forward_pre_hooks))


def _is_relu(module: nn.Module | None) -> bool:
    return type(module) is nn.ReLU and not _is_watched(module)


def _can_absorb(layer: nn.Module | None, steps: Epilogue) -> TypeGuard[QuantLayer | FloatConv2d]:
    """Whether the layer has an epilogue to spare; a linear layer's output has no positions to pool."""
    kinds = (QuantConv2d, FloatConv2d) if steps.pool > 1 else (QuantLayer, FloatConv2d)
    return isinstance(layer, kinds) and layer.steps is None and not _is_watched(layer, inputs=False)


def _replace(net: nn.Module, impl: str, norm_input: str) -> None:
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if _is_relu(child):
                setattr(parent, name, Activation(Epilogue(relu=True), impl=impl))
            elif type(child) is nn.Linear:
                become(child, FloatLinear)
            elif type(child) in NORMS and norm_input != "fp32":
                NORMS[type(child)].convert(child, saved=norm_input)
