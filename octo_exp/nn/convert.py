"""Float net -> quantised net: swap layers in place, and what the training loop needs to know of the result."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from octo_exp.errors import UserError
from octo_exp.nn.float_block import to_bf16
from octo_exp.nn.fuse import fuse
from octo_exp.nn.layers import QuantConv2d, QuantLayer, QuantLinear
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme

CONVERTERS = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}


def convert(
    net: nn.Module,
    scheme: Scheme,
    *,
    impl: str,
    clock: Clock,
    input_shape: tuple[int, ...] | None = None,
    keep: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Swap the net's nn.Conv2d and nn.Linear for quantised ones, in place; return the names of those swapped.

    `scheme.skip` names layers that stay float: `first` and `last` (in order of definition) or name patterns.
    `input_shape` (C, H, W) is needed where the compensation has parameters per output element. A float scheme swaps
    nothing. A layer that stands under several names is swapped under each. `keep` names layers that stay float though
    the scheme takes them, with their type, fp32 or bf16 (the speed guard's verdict). ReLU, pooling and norms are
    swapped for forms that keep bits and int8 for the backward pass (`fuse`). Raises UserError where a scheme, a skip
    or an override matches no layer, ValueError where the net is itself one layer.
    """
    if type(net) in CONVERTERS:
        raise ValueError("convert swaps layers within a net: wrap a single layer in nn.Sequential")
    if scheme.is_float:
        return ()
    keep = keep or {}
    chosen = [name for name in quantizable(net, scheme) if name not in keep]
    for name in (name for name, kept in keep.items() if kept == "bf16"):
        _swap(net, name, to_bf16(net.get_submodule(name)))
    shapes = _output_shapes(net, chosen, input_shape) if _needs_shapes(scheme, chosen) else {}
    for name in chosen:
        module = net.get_submodule(name)
        layer = CONVERTERS[type(module)].from_float(  # type: ignore[attr-defined]
            module, name=name, scheme=scheme.for_layer(name), impl=impl, clock=clock, output_shape=shapes.get(name)
        )
        _swap(net, name, layer)
    fuse(net, impl=impl, norm_input=scheme.norm_input)
    # A pixel's channels are adjacent in every kernel, so they are in the weights.
    net.to(memory_format=torch.channels_last)
    return tuple(chosen)


def quantizable(net: nn.Module, scheme: Scheme) -> list[str]:
    """Return the names of the layers that a scheme takes; raises UserError where that is none."""
    candidates = [name for name, module in net.named_modules() if type(module) in CONVERTERS]
    _check_patterns("quant.skip", [p for p in scheme.skip if p not in ("first", "last")], candidates)
    _check_patterns("quant.overrides", scheme.overrides or (), candidates)
    chosen = [name for name in candidates if not _skipped(name, candidates, scheme)]
    if not chosen:
        raise UserError(
            f"scheme {scheme.name!r} matches no layer: the net has {len(candidates)} convolution or linear layers and "
            f"quant.skip={list(scheme.skip)} leaves none; shorten quant.skip"
        )
    return chosen


def _swap(net: nn.Module, name: str, layer: nn.Module) -> None:
    # A shared layer has several names; one left float would train beside the quantised one, unseen.
    module = net.get_submodule(name)
    for alias in [n for n, m in net.named_modules(remove_duplicate=False) if m is module]:
        parent, _, child = alias.rpartition(".")
        setattr(net.get_submodule(parent), child, layer)


def set_impl(net: nn.Module, impl: str) -> None:
    """Let a converted net, or one of its layers, compute by another kernel implementation from now on."""
    for module in net.modules():
        if isinstance(module, QuantLayer):
            module.op = dataclasses.replace(module.op, impl=impl)
        elif hasattr(module, "impl"):
            module.impl = impl


def _skipped(name: str, candidates: list[str], scheme: Scheme) -> bool:
    ends = {"first": candidates[0], "last": candidates[-1]}
    return any(name == ends[p] if p in ends else fnmatch.fnmatchcase(name, p) for p in scheme.skip)


def _check_patterns(key: str, patterns: Iterable[str], candidates: list[str]) -> None:
    for pattern in patterns:
        if not fnmatch.filter(candidates, pattern):
            raise UserError(
                f"{key}: {pattern!r} matches no layer; layers: {', '.join(candidates)}; names are written whole, as in "
                "quant.skip=[features.0] or quant.overrides={features.*:{bits:4}}"
            )


def _needs_shapes(scheme: Scheme, names: list[str]) -> bool:
    specs = [scheme.for_layer(name).compensation for name in names]
    return any(spec is not None and spec.granularity == "element" for spec in specs)


def _output_shapes(net: nn.Module, names: list[str], input_shape: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    if input_shape is None:
        raise UserError("quant.compensation.granularity=element needs the net's input shape: pass input_shape")
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: shapes.update({name: tuple(output.shape[1:])})

    hooks = [net.get_submodule(name).register_forward_hook(remember(name)) for name in names]
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, *input_shape, device=next(net.parameters()).device))
    net.train(training)
    for hook in hooks:
        hook.remove()
    return shapes


def compensation_penalty(net: nn.Module) -> Tensor | None:
    """Return the sum of what the compensations add to the loss, or None where none adds anything."""
    layers = [m for m in net.modules() if isinstance(m, QuantLayer) and m.compensator is not None]
    penalties = [p for m in layers if (p := m.compensator.penalty()) is not None]
    return torch.stack(penalties).sum() if penalties else None


def parameter_groups(net: nn.Module) -> list[dict[str, object]]:
    """Optimizer groups: the net's own parameters, then LAC's, at their own learning rate and without weight decay."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for module in net.modules():
        if isinstance(module, QuantLayer) and module.compensator is not None:
            by_rate.setdefault(module.compensator.spec.learning_rate, []).extend(module.compensator.parameters())
    special = {id(p) for group in by_rate.values() for p in group}
    groups: list[dict[str, object]] = [{"params": [p for p in net.parameters() if id(p) not in special]}]
    return groups + [{"params": ps, "lr": rate, "weight_decay": 0.0} for rate, ps in by_rate.items()]
