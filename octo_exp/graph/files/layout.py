"""The two layouts of a model file, nested dicts <-> specs: the published one, and our own for what it cannot say.

Our own has a field `format` and the specs' fields by their names; each layer has a field `layer`, which says its kind.
"""

from collections.abc import Callable
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.graph.files.published import from_published, to_published
from octo_exp.graph.files.typed import array, fields_of, pair, quantization, typed, within
from octo_exp.graph.spec import BlockSpec, ConvSpec, InputSpec, Layer, ModelSpec, PoolSpec, ResidualSpec

# To be raised with every change of what the fields mean.
FORMAT = "octo_exp.mcu 1"

_COUNTS = ("in_channels", "out_channels", "in_size", "out_size", "stride", "groups")
_PAIRS = ("kernel_size", "padding")
_ARRAYS = ("weight", "bias", "w_scales")
_QUANTIZATION = ("x_scale", "x_zero", "y_scale", "y_zero")
MODEL = ("format", "input", "layers", "classifier")
INPUT = ("scale", "zero")
CONV = (*_COUNTS, "depthwise", *_PAIRS, *_QUANTIZATION, *_ARRAYS)
POOL = ("kind", "channels", "in_size", "out_size", "kernel", "stride", "padding")
RESIDUAL = ("channels", "size", *_QUANTIZATION)
BLOCK = ("body", "shortcut", "residual")


def _conv(value: Any) -> ConvSpec:
    fields = fields_of(value, CONV)
    own: dict[str, Any] = {name: typed(fields, name, int) for name in _COUNTS}
    own |= {name: pair(fields, name) for name in _PAIRS}
    own |= {name: array(fields, name) for name in _ARRAYS}
    return ConvSpec(depthwise=typed(fields, "depthwise", bool), **own, **quantization(fields))


def _convs(fields: Any, name: str) -> tuple[ConvSpec, ...]:
    convs = []
    for i, value in enumerate(typed(fields, name, list)):
        with within(f"{name} {i}"):
            convs.append(_conv(value))
    return tuple(convs)


def _pool(value: Any) -> PoolSpec:
    fields = fields_of(value, POOL)
    return PoolSpec(kind=typed(fields, "kind", str), **{name: typed(fields, name, int) for name in POOL[1:]})


def _residual(value: Any) -> ResidualSpec:
    fields = fields_of(value, RESIDUAL)
    return ResidualSpec(**{name: typed(fields, name, int) for name in RESIDUAL[:2]}, **quantization(fields))


def _block(value: Any) -> BlockSpec:
    fields = fields_of(value, BLOCK)
    with within("residual"):
        residual = None if fields["residual"] is None else _residual(fields["residual"])
    return BlockSpec(body=_convs(fields, "body"), shortcut=_convs(fields, "shortcut"), residual=residual)


# What a layer's field `layer` says -> its class, and how its other fields are read.
LAYERS: dict[str, tuple[type, Callable[[Any], Layer]]] = {
    "conv": (ConvSpec, _conv),
    "pool": (PoolSpec, _pool),
    "block": (BlockSpec, _block),
}


def _layer(value: Any) -> Layer:
    name = value.get("layer") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in LAYERS:
        raise UserError(f"must be a dict whose field 'layer' is one of {', '.join(LAYERS)}")
    return LAYERS[name][1]({key: part for key, part in value.items() if key != "layer"})


def _own(tree: Any) -> ModelSpec:
    fields = fields_of(tree, MODEL)
    if typed(fields, "format", str) != FORMAT:
        raise UserError(f"format must be {FORMAT!r}: it was written by another version")
    with within("input"):
        values = fields_of(fields["input"], INPUT)
        start = InputSpec(scale=typed(values, "scale", float), zero=typed(values, "zero", int))
    layers = []
    for i, value in enumerate(typed(fields, "layers", list)):
        with within(f"layer {i}"):
            layers.append(_layer(value))
    with within("classifier"):
        classifier = _conv(fields["classifier"])
    return ModelSpec(input=start, layers=tuple(layers), classifier=classifier)


def _plain(value: Any) -> Any:
    """A spec or a tuple of specs -> dicts and lists; other values as they are."""
    names = {InputSpec: INPUT, ConvSpec: CONV, PoolSpec: POOL, ResidualSpec: RESIDUAL, BlockSpec: BLOCK}
    if type(value) in names:
        return {name: _plain(getattr(value, name)) for name in names[type(value)]}
    # Pairs of numbers stay.
    if isinstance(value, tuple) and all(type(part) in names for part in value):
        return [_plain(part) for part in value]
    return value


def _name(layer: Layer) -> str:
    return next(name for name, (kind, _) in LAYERS.items() if isinstance(layer, kind))


def from_dict(tree: Any) -> ModelSpec:
    """The dict of a file -> spec; anything with __array__ serves as an array. UserError names the part."""
    return _own(tree) if isinstance(tree, dict) and "format" in tree else from_published(tree)


def to_dict(spec: ModelSpec) -> dict[str, Any]:
    """Spec -> the dict that a file holds, of plain Python values and arrays; published where that layout serves."""
    published = to_published(spec)
    if published is not None:
        return published
    layers = [{"layer": _name(layer)} | _plain(layer) for layer in spec.layers]
    return {
        "format": FORMAT,
        "input": _plain(spec.input),
        "layers": layers,
        "classifier": _plain(spec.classifier),
    }
