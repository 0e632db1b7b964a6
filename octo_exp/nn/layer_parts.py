"""What a quantised layer is given when it is made: the quantisers of its operands, and its compensation."""

from typing import Any

from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.kernels.ops import ConvGeometry
from octo_exp.nn.three_gemms import Op
from octo_exp.quant.compensation import Compensation, Compensator
from octo_exp.quant.forms import PerChannel
from octo_exp.quant.quantizer import Quantizer
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import OPERANDS, OWN, ROLE_OPERANDS, ROLES, Scheme

_WIDTHS = {"fp32": 32, "bf16": 16, "fake": 32}


def build_parts(
    layer: Any, name: str, scheme: Scheme, op: Op, clock: Clock, output_shape: tuple[int, ...] | None
) -> None:
    """Build a layer's quantisers and its compensation, and note which quantiser serves which role, at how many bits.

    output_shape: (C, H, W), needed for a compensation with parameters for each element alone.
    """
    layer.layer_name, layer.scheme, layer.op, layer.clock = name, scheme, op, clock
    for key in (*OPERANDS, *OWN):
        setattr(layer, f"quantizer_{key}", _quantizer(layer, key))
    layer.keys = {
        (role, operand): scheme.key_of(role, operand)
        for role in ROLES
        for operand in ROLE_OPERANDS[role]
        if scheme.precision_of(role) in ("fake", "int8") and scheme.operand(scheme.key_of(role, operand)) is not None
    }
    # grad_input quantises g times the weight's per-channel scale: another tensor, so another state.
    w = scheme.operand(scheme.key_of("grad_input", "w"))
    scaled = w is not None and isinstance(w.granularity, PerChannel) and layer.quantizer_g is not None
    layer.quantizer_g_scaled = _quantizer(layer, "g") if scaled else None
    if scaled:
        # Another tensor, so another key of its noise.
        layer.quantizer_g_scaled.operand = "g_scaled"
        if scheme.grad_input == "int8":
            layer.keys["grad_input", "g"] = "g_scaled"
    layer.compensator = _compensator(layer, output_shape)
    layer.operand_bits = {role: (_width(scheme, role, 0), _width(scheme, role, 1)) for role in ROLES}


def geometry_of(conv: nn.Conv2d, padding: str | tuple[int, ...]) -> ConvGeometry:
    """Return what the kernels are told of a convolution, with a border of zeros of this (height, width)."""
    if isinstance(padding, str):
        raise ValueError(f"padding must be (height, width), got {padding!r}")
    (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w) = conv.stride, padding, conv.dilation
    return ConvGeometry(
        stride=(stride_h, stride_w), padding=(pad_h, pad_w), dilation=(dilation_h, dilation_w), groups=conv.groups
    )


def _width(scheme: Scheme, role: str, index: int) -> int:
    """Bits of an operand that a role multiplies."""
    precision = scheme.precision_of(role)
    spec = scheme.operand(scheme.key_of(role, ROLE_OPERANDS[role][index]))
    return spec.bits if precision == "int8" and spec is not None else _WIDTHS[precision]


def _quantizer(layer: Any, key: str) -> Quantizer | None:
    scheme: Scheme = layer.scheme
    spec, operand = scheme.operand(key), key[0]
    if spec is None or not scheme.quantized_in(key):
        return None
    # Not the weight's own shape: a parametrised weight is computed whenever it is read.
    channels = (_outputs(layer), *[1] * (3 if isinstance(layer, nn.Conv2d) else 1))
    return spec.build(
        operand=key,
        layer=layer.layer_name,
        clock=layer.clock,
        stored=key == "x",
        clip=scheme.clip if operand == "g" else None,
        impl=layer.op.impl,
        channels=channels if operand == "w" else None,
        channel_dim=0 if operand == "w" else layer.op.channel_dim,
    )


def _outputs(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def _compensator(layer: Any, output_shape: tuple[int, ...] | None) -> Compensator | None:
    spec: Compensation | None = layer.scheme.compensation
    if spec is None:
        return None
    shape: tuple[int, ...] = (_outputs(layer),)
    if spec.by_element and isinstance(layer, nn.Conv2d):
        if output_shape is None:
            raise UserError(f"layer {layer.layer_name!r}: granularity=element needs the net's input shape")
        shape = output_shape
    return spec.build(shape)
