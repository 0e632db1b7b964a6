"""A trained graph -> the spec of its file: masters become integers, scales stay.

Weights are rounded half to even and clamped to [-127, 127], biases to int32. A net whose masters are such integers
already, after training in strict int8, gives the same logits when it is read again; of a float head, which becomes
int8 here, the logits are then codes.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.spec import BlockSpec, ConvSpec, InputSpec, Layer, ModelSpec, ResidualSpec
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.heads import FloatHead, quantized_classifier
from octo_exp.graph.train.modules import McuBlock, McuConv2d, McuPool


def spec_of(net: McuNet, *, logits_absmax: float | None) -> ModelSpec:
    """Return the spec of a net as it stands, its head as the classifier.

    logits_absmax: the largest size of a float head's logits on images of the task; they get y_scale = logits_absmax /
    127. Not used for int8 heads. Raises UserError where a float head comes without it.
    """
    layers = tuple(_layer(module, spec) for module, spec in zip(net.layers, net.spec.layers, strict=True))
    start = InputSpec(scale=float(net.input.scale), zero=int(net.input.zero))
    return ModelSpec(input=start, layers=layers, classifier=_classifier(net, logits_absmax))


def _integers(master: Tensor, dtype: torch.dtype, low: int, high: int) -> Any:
    # In float64: 2^31 - 1 is no float32.
    return master.detach().cpu().double().round().clamp(low, high).to(dtype).numpy()


def _conv(module: McuConv2d, spec: ConvSpec) -> ConvSpec:
    return replace(
        spec,
        out_channels=module.out_channels,
        weight=_integers(module.weight, torch.int8, -127, 127),
        bias=_integers(module.bias, torch.int32, -(2**31), 2**31 - 1),
        w_scales=module.w_scales.cpu().numpy().copy(),
        **{name: float(getattr(module, name)) for name in ("x_scale", "y_scale")},
        **{name: int(getattr(module, name)) for name in ("x_zero", "y_zero")},
    )


def _residual(module: McuBlock, spec: ResidualSpec | None) -> ResidualSpec | None:
    if spec is None:
        return None
    (x_scale, _, y_scale), (x_zero, _, y_zero) = module.residual.scales.tolist(), module.residual.zeros.tolist()
    return replace(spec, x_scale=x_scale, x_zero=x_zero, y_scale=y_scale, y_zero=y_zero)


def _layer(module: McuConv2d | McuPool | McuBlock, spec: Layer) -> Layer:
    if isinstance(spec, ConvSpec):
        return _conv(module, spec)
    if not isinstance(spec, BlockSpec):
        return spec
    return BlockSpec(
        body=tuple(_conv(conv, part) for conv, part in zip(module.body, spec.body, strict=True)),
        shortcut=tuple(_conv(conv, part) for conv, part in zip(module.shortcut, spec.shortcut, strict=True)),
        residual=_residual(module, spec.residual),
    )


def _classifier(net: McuNet, logits_absmax: float | None) -> ConvSpec:
    head, spec = net.head, net.spec.classifier
    if not isinstance(head, FloatHead):
        return _conv(head, spec)
    if logits_absmax is None or not 0 < logits_absmax < math.inf:
        raise UserError(
            f"logits_absmax={logits_absmax}: a float head becomes int8 by the range of its logits; "
            "give the largest |logit| on images of the task"
        )
    spec = replace(spec, x_scale=float(head.x_scale), x_zero=int(head.x_zero))
    return quantized_classifier(spec, head.linear.weight, head.linear.bias, y_scale=float(logits_absmax) / 127)
