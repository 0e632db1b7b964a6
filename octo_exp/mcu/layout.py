"""The names that the file format gives to a model's parts: nested dicts <-> specs.

Dicts come from outside: every field must be there, none may be more, and types are exact. Messages name fields and
types, never values, for a value can be anything.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from octo_exp.errors import UserError
from octo_exp.mcu.spec import BlockSpec, ConvSpec, ModelSpec, ResidualSpec

MODEL = ("first_conv", "blocks", "feature_mix", "classifier")
BLOCK = ("pointwise1", "depthwise", "pointwise2", "residual", "se")
CLASSIFIER = ("in_channel", "out_channel", "params", "kernel_size", "stride", "groups")
CONV = (
    *("in_channel", "in_shape", "out_channel", "out_shape", "kernel_size", "stride"),
    *("groups", "depthwise", "act", "params"),
)
PARAMS = ("weight", "bias", "x_scale", "x_zero", "y_scale", "y_zero", "w_scales")
RESIDUAL = ("in_channel", "in_shape", "params")
RESIDUAL_PARAMS = ("x_scale", "x_zero", "y_scale", "y_zero")


@contextmanager
def _within(part: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{part}: {error}") from error


def _fields(value: Any, names: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"must be a dict of {', '.join(names)}, got {type(value).__name__}")
    for name in names:
        if name not in value:
            raise UserError(f"lacks the field {name!r}")
    for name in value:
        if name not in names:
            shown = repr(name[:40]) if isinstance(name, str) else f"a {type(name).__name__}"
            raise UserError(f"has the field {shown}, which the format does not know")
    return value


def _typed(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields[name]
    # bool is an int to isinstance.
    if type(value) is not kind:
        raise UserError(f"{name} must be {kind.__name__}, got {type(value).__name__}")
    return value


def _absent(fields: Mapping[str, Any], name: str) -> None:
    if fields[name] is not None:
        raise UserError(f"{name} must be None: it is not supported")


def _array(fields: Mapping[str, Any], name: str) -> np.ndarray:
    value = fields[name]
    if not hasattr(value, "__array__"):
        raise UserError(f"{name} must be an array, got {type(value).__name__}")
    return np.ascontiguousarray(value)


def _kernel(fields: Mapping[str, Any]) -> tuple[int, int]:
    value = fields["kernel_size"]
    if type(value) is int:
        return value, value
    if isinstance(value, tuple | list) and len(value) == 2 and all(type(k) is int for k in value):
        return value[0], value[1]
    raise UserError("kernel_size must be an int or a pair of ints")


def _quantization(params: Mapping[str, Any]) -> dict[str, Any]:
    scales = {name: _typed(params, name, float) for name in ("x_scale", "y_scale")}
    return scales | {name: _typed(params, name, int) for name in ("x_zero", "y_zero")}


def _conv(value: Any, *, is_classifier: bool = False) -> ConvSpec:
    fields = _fields(value, CLASSIFIER if is_classifier else CONV)
    params = _fields(fields["params"], PARAMS)
    if not is_classifier:
        _absent(fields, "act")
    return ConvSpec(
        in_channels=_typed(fields, "in_channel", int),
        out_channels=_typed(fields, "out_channel", int),
        # The classifier sees the pooled image.
        in_size=1 if is_classifier else _typed(fields, "in_shape", int),
        out_size=1 if is_classifier else _typed(fields, "out_shape", int),
        kernel_size=_kernel(fields),
        stride=_typed(fields, "stride", int),
        groups=_typed(fields, "groups", int),
        depthwise=False if is_classifier else _typed(fields, "depthwise", bool),
        weight=_array(params, "weight"),
        bias=_array(params, "bias"),
        w_scales=_array(params, "w_scales"),
        **_quantization(params),
    )


def _residual(value: Any) -> ResidualSpec | None:
    if value is None:
        return None
    if isinstance(value, dict) and "kernel_size" in value:
        raise UserError("a convolution on the shortcut is not supported: only additions are")
    fields = _fields(value, RESIDUAL)
    return ResidualSpec(
        channels=_typed(fields, "in_channel", int),
        size=_typed(fields, "in_shape", int),
        **_quantization(_fields(fields["params"], RESIDUAL_PARAMS)),
    )


def _block(value: Any) -> BlockSpec:
    fields = _fields(value, BLOCK)
    _absent(fields, "se")
    convs: dict[str, ConvSpec | None] = {}
    for name in ("pointwise1", "depthwise", "pointwise2"):
        with _within(name):
            absent = name == "pointwise1" and fields[name] is None
            convs[name] = None if absent else _conv(fields[name])
    with _within("residual"):
        residual = _residual(fields["residual"])
    return BlockSpec(**convs, residual=residual)


def from_dict(tree: Any) -> ModelSpec:
    """The dict of a file -> spec; anything with __array__ serves as an array. UserError names the part."""
    fields = _fields(tree, MODEL)
    _absent(fields, "feature_mix")
    blocks = []
    for i, value in enumerate(_typed(fields, "blocks", list)):
        with _within(f"block {i}"):
            blocks.append(_block(value))
    with _within("first_conv"):
        first = _conv(fields["first_conv"])
    with _within("classifier"):
        classifier = _conv(fields["classifier"], is_classifier=True)
    return ModelSpec(first_conv=first, blocks=tuple(blocks), classifier=classifier)


def _params_dict(conv: ConvSpec) -> dict[str, Any]:
    return {name: getattr(conv, name) for name in PARAMS}


def _conv_dict(conv: ConvSpec | None) -> dict[str, Any] | None:
    if conv is None:
        return None
    return {
        "in_channel": conv.in_channels,
        "in_shape": conv.in_size,
        "out_channel": conv.out_channels,
        "out_shape": conv.out_size,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "groups": conv.groups,
        "depthwise": conv.depthwise,
        "act": None,
        "params": _params_dict(conv),
    }


def _residual_dict(residual: ResidualSpec | None) -> dict[str, Any] | None:
    if residual is None:
        return None
    params = {name: getattr(residual, name) for name in RESIDUAL_PARAMS}
    return {"in_channel": residual.channels, "in_shape": residual.size, "params": params}


def _block_dict(block: BlockSpec) -> dict[str, Any]:
    convs = {name: _conv_dict(getattr(block, name)) for name in ("pointwise1", "depthwise", "pointwise2")}
    return convs | {"residual": _residual_dict(block.residual), "se": None}


def to_dict(spec: ModelSpec) -> dict[str, Any]:
    """Spec -> the dict that a file holds, of plain Python values and arrays."""
    head = _conv_dict(spec.classifier)
    return {
        "first_conv": _conv_dict(spec.first_conv),
        "blocks": [_block_dict(block) for block in spec.blocks],
        "feature_mix": None,
        "classifier": {name: head[name] for name in CLASSIFIER},
    }
