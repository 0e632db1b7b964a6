"""The two layouts of a model file, nested dicts <-> specs: the published one, and our own for what it cannot say.

Our own has a field `format` and the specs' fields by their names; each layer has a field `layer`, which says its kind.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from octo_exp.base.errors import UserError
from octo_exp.graph.files.published import from_published, to_published
from octo_exp.graph.files.typed import array, fields_of, pair, typed, within
from octo_exp.graph.spec import BlockSpec, ConvSpec, InputSpec, Layer, ModelSpec, PoolSpec, ResidualSpec

# To be raised with every change of what the fields mean.
FORMAT = "octo_exp.mcu 1"

MODEL = ("format", "input", "layers", "classifier")
# What a layer's field `layer` says.
LAYERS: dict[str, type[Layer]] = {"conv": ConvSpec, "pool": PoolSpec, "block": BlockSpec}
_READERS: dict[Any, Callable[..., Any]] = {np.ndarray: array, tuple[int, int]: pair}


def _read(kind: Any, value: Any) -> Any:
    """A dict of the fields of a spec of this kind, each of the type that the kind states -> the spec."""
    types: dict[str, Any] = {field.name: field.type for field in fields(kind)}
    given = fields_of(value, tuple(types))
    return kind(
        **{name: _READERS[of](given, name) if of in _READERS else typed(given, name, of) for name, of in types.items()}
    )


def _convs(given: Any, name: str) -> tuple[ConvSpec, ...]:
    convs = []
    for i, value in enumerate(typed(given, name, list)):
        with within(f"{name} {i}"):
            convs.append(_read(ConvSpec, value))
    return tuple(convs)


def _block(value: Any) -> BlockSpec:
    given = fields_of(value, tuple(field.name for field in fields(BlockSpec)))
    with within("residual"):
        residual = None if given["residual"] is None else _read(ResidualSpec, given["residual"])
    return BlockSpec(body=_convs(given, "body"), shortcut=_convs(given, "shortcut"), residual=residual)


def _layer(value: Any) -> Any:
    name = value.get("layer") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in LAYERS:
        raise UserError(f"must be a dict whose field 'layer' is one of {', '.join(LAYERS)}")
    own = {key: part for key, part in value.items() if key != "layer"}
    return _block(own) if name == "block" else _read(LAYERS[name], own)


def _own(tree: Any) -> ModelSpec:
    given = fields_of(tree, MODEL)
    if typed(given, "format", str) != FORMAT:
        raise UserError(f"format must be {FORMAT!r}: it was written by another version")
    with within("input"):
        start = _read(InputSpec, given["input"])
    layers = []
    for i, value in enumerate(typed(given, "layers", list)):
        with within(f"layer {i}"):
            layers.append(_layer(value))
    with within("classifier"):
        classifier = _read(ConvSpec, given["classifier"])
    return ModelSpec(input=start, layers=tuple(layers), classifier=classifier)


def _plain(value: Any) -> Any:
    """A spec or a tuple of specs -> dicts and lists; other values as they are."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    # Pairs of numbers stay.
    if isinstance(value, tuple) and all(map(is_dataclass, value)):
        return [_plain(part) for part in value]
    return value


def _name(layer: Layer) -> str:
    return next(name for name, kind in LAYERS.items() if isinstance(layer, kind))


def from_dict(tree: Any) -> ModelSpec:
    """The dict of a file -> spec; anything with __array__ serves as an array. UserError names the part."""
    return _own(tree) if isinstance(tree, dict) and "format" in tree else from_published(tree)


def to_dict(spec: ModelSpec) -> dict[str, Any]:
    """Spec -> the dict that a file holds, of plain Python values and arrays; published where that layout serves."""
    published = to_published(spec)
    if published is not None:
        return published
    layers = [{"layer": _name(layer)} | _plain(layer) for layer in spec.layers]
    own = {"format": FORMAT, "input": _plain(spec.input), "layers": layers}
    return own | {"classifier": _plain(spec.classifier)}
