"""A graph whose sums cannot leave int32."""

from dataclasses import replace

import numpy as np

from octo_exp.base.errors import UserError
from octo_exp.graph.integers.fixed import conv_factors
from octo_exp.graph.spec import BlockSpec, ConvSpec, Layer, ModelSpec

_LIMIT = 2**31 - 1
# A code less its zero point.
_CODE = 255


def within_int32(spec: ModelSpec) -> ModelSpec:
    """Return the graph with |bias| + 255 * sum|w| below 2^31 in every channel.

    Dead channels of released models have the lowest bias that there is. It is pulled in by what the products can add;
    UserError where that moves an output by more than half a code.
    """
    layers = tuple(_layer(layer, f"layer {i}") for i, layer in enumerate(spec.layers))
    return replace(spec, layers=layers, classifier=_conv(spec.classifier, "the classifier"))


def _layer(layer: Layer, name: str) -> Layer:
    if isinstance(layer, BlockSpec):
        body = tuple(_conv(conv, f"{name}, body {i}") for i, conv in enumerate(layer.body))
        shortcut = tuple(_conv(conv, f"{name}, shortcut {i}") for i, conv in enumerate(layer.shortcut))
        return replace(layer, body=body, shortcut=shortcut)
    return _conv(layer, name) if isinstance(layer, ConvSpec) else layer


def _conv(conv: ConvSpec, name: str) -> ConvSpec:
    room = _LIMIT - _CODE * np.abs(conv.weight.astype(np.int64)).reshape(conv.out_channels, -1).sum(1)
    bias = conv.bias.astype(np.int64)
    if (room >= np.abs(bias)).all():
        return conv
    pulled = np.clip(bias, -room, room)
    factors = conv_factors(conv.x_scale, conv.w_scales, conv.y_scale)
    moved = np.abs(bias - pulled) * factors.value / 2.0**factors.shift
    if room.min() < 0 or moved.max() > 0.5:
        largest = int((np.abs(bias) + _LIMIT - room).max())
        raise UserError(f"{name}: its sums can leave int32 ({largest:,}); quantise the network again")
    return replace(conv, bias=pulled.astype(np.int32))
