"""Which layers of a float net a scheme quantises, and why every other layer that multiplies stays float."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from octo_exp.base.errors import UserError
from octo_exp.nn.layers import QuantConv2d, QuantLayer, QuantLinear
from octo_exp.quant.scheme import Scheme

# Subclasses are quantised with them, where they compute what their torch class does.
CONVERTERS: Mapping[type[nn.Module], type[QuantLayer]] = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}
_OTHER_LAYERS = (_ConvNd, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
# Nothing is multiplied and summed there.
_NO_PRODUCTS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm, _NormBase, ParametrizationList)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What becomes of a net's layers. quantized: their names; floats: name of every other one -> why it stays float."""

    quantized: tuple[str, ...]
    floats: Mapping[str, str]

    def line(self) -> str:
        """Return one line that names the layers that stay float."""
        return "layers that stay float: " + "; ".join(f"{name} ({reason})" for name, reason in self.floats.items())


def select(net: nn.Module, scheme: Scheme, keep: Mapping[str, str] | None = None) -> Selection:
    """Choose what `scheme` quantises; UserError where that is no layer, or a pattern of the scheme matches none.

    keep: name -> type (fp32, bf16) of layers that the speed guard keeps float.
    """
    if scheme.is_float:
        return all_float(net, f"quant={scheme.name} is float")
    obstacles = dict(_layers(net))
    floats = {name: reason for name, reason in obstacles.items() if reason is not None}
    candidates = [name for name in obstacles if name not in floats]
    # What is float anyway may be skipped by name; the scheme cannot change it.
    _check_patterns("quant.skip", [p for p in scheme.skip if p not in ("first", "last")], list(obstacles))
    _check_patterns("quant.overrides", scheme.overrides or (), candidates)
    for name in candidates:
        pattern = _skipped_by(name, list(obstacles), scheme)
        if pattern is not None:
            floats[name] = f"quant.skip: {pattern}"
    chosen = [name for name in candidates if name not in floats]
    if not chosen:
        unfit = "".join(f"; {name}: {reason}" for name, reason in floats.items() if obstacles[name] is not None)
        raise UserError(
            f"scheme {scheme.name!r} matches no layer: the net has {len(candidates)} convolution or linear layers and "
            f"quant.skip={list(scheme.skip)} leaves none; shorten quant.skip{unfit}"
        )
    floats |= {name: f"speed guard: {kept} is faster" for name, kept in (keep or {}).items()}
    floats |= _parameters_past_layers(net)
    return Selection(quantized=tuple(name for name in chosen if name not in floats), floats=floats)


def all_float(net: nn.Module, reason: str) -> Selection:
    """Return the selection of a net in which nothing is quantised, for one reason."""
    names = [name for name, _ in _layers(net)]
    return Selection(quantized=(), floats=dict.fromkeys([*names, *_parameters_past_layers(net)], reason))


def never_ran(net: nn.Module) -> dict[str, str]:
    """Return name -> reason of quantised layers whose forward no batch passed, where others' did."""
    layers = {name: module for name, module in net.named_modules() if isinstance(module, QuantLayer)}
    if not any(layer.ran for layer in layers.values()):
        return {}
    reason = "its forward never ran: the net reads its weights past it, or does not use it"
    return {name: reason for name, layer in layers.items() if not layer.ran}


def _layers(net: nn.Module) -> Iterator[tuple[str, str | None]]:
    """(name, why it cannot be quantised or None) of every layer that multiplies by weights, in order of definition."""
    inside: tuple[str, ...] = ()
    for name, module in net.named_modules():
        if isinstance(module, QuantLayer) or name.startswith(inside):
            continue
        kind = next((kind for kind in CONVERTERS if isinstance(module, kind)), None)
        if isinstance(module, nn.MultiheadAttention):
            # It reads the weights of the layer in it, which itself never runs.
            inside = (*inside, f"{name}.")
        if kind is not None:
            yield name, _obstacle(module, kind, name)
        elif isinstance(module, _OTHER_LAYERS):
            yield name, f"{type(module).__name__} has no quantised form"


def _obstacle(module: nn.Module, kind: type[nn.Module], name: str) -> str | None:
    found = type(module)
    own = [
        method
        for method in ("forward", "_conv_forward", "__call__")
        if getattr(found, method, None) is not getattr(kind, method, None) or method in vars(module)
    ]
    if own:
        return f"{found.__name__} has a {own[0]} of its own, which may compute anything"
    if ".parametrizations." in f".{name}":
        return "it is part of another layer's parametrization"
    types = sorted({str(p.dtype) for p in module.parameters() if p.dtype != torch.float32})
    return f"its weights are {types[0]}, and those of quantised layers float32" if types else None


def _parameters_past_layers(net: nn.Module) -> dict[str, str]:
    """Name modules that are no layers and yet hold matrices: what is multiplied by them is known to themselves only."""
    layers = (*CONVERTERS, *_OTHER_LAYERS, *_NO_PRODUCTS)
    found = {}
    for name, module in net.named_modules():
        matrices = [key for key, p in module.named_parameters(recurse=False) if p.dim() > 1]
        if matrices and not isinstance(module, layers):
            found[name or "(net)"] = f"parameters of its own ({', '.join(matrices)}): what it does with them is float"
    return found


def _skipped_by(name: str, layers: list[str], scheme: Scheme) -> str | None:
    ends = {"first": layers[0], "last": layers[-1]}
    for pattern in scheme.skip:
        if name == ends[pattern] if pattern in ends else fnmatch.fnmatchcase(name, pattern):
            return pattern
    return None


def _check_patterns(key: str, patterns: Iterable[str], names: list[str]) -> None:
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"{key}: {pattern!r} matches no layer; layers: {', '.join(names)}; names are written whole, as in "
                "quant.skip=[features.0] or quant.overrides={features.*:{bits:4}}"
            )
