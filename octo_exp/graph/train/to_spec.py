"""A trained graph -> the spec of its file: masters become integers, scales stay.

Weights are rounded half to even and clamped to [-127, 127], biases to int32. A net whose masters are such integers
already, after training in strict int8, gives the same logits when it is read again; of a float head, which becomes
int8 here, the logits are then codes.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.spec import BlockSpec, ConvSpec, InputSpec, Layer, ModelSpec, PoolSpec, ResidualSpec
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.heads import FloatHead, quantized_classifier
from octo_exp.graph.train.modules import McuConv2d, McuResidual


def spec_of(net: McuNet, *, logits_absmax: float | None) -> ModelSpec:
    """Return the spec of a net as it stands, its head as the classifier.

    logits_absmax: the largest size of a float head's logits on images of the task; they get y_scale = logits_absmax /
    127. Not used for int8 heads. Raises UserError where a float head comes without it.
    """
    convs = map(_conv, net.convs, net.spec.convs)
    additions = (module for module in net.modules() if isinstance(module, McuResidual))
    layers = tuple(_layer(layer, convs, additions) for layer in net.spec.layers)
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
        x_scale=float(module.x_scale),
        x_zero=int(module.x_zero),
        y_scale=float(module.y_scale),
        y_zero=int(module.y_zero),
    )


def _residual(module: McuResidual, spec: ResidualSpec) -> ResidualSpec:
    (x_scale, _, y_scale), (x_zero, _, y_zero) = module.scales.tolist(), module.zeros.tolist()
    return replace(spec, x_scale=x_scale, x_zero=x_zero, y_scale=y_scale, y_zero=y_zero)


def _layer(spec: Layer, convs: Iterator[ConvSpec], additions: Iterator[McuResidual]) -> Layer:
    """Take a layer's parts, in order of execution."""
    if isinstance(spec, ConvSpec):
        return next(convs)
    if isinstance(spec, PoolSpec):
        return spec
    body, shortcut = (tuple(islice(convs, len(part))) for part in (spec.body, spec.shortcut))
    residual = None if spec.residual is None else _residual(next(additions), spec.residual)
    return BlockSpec(body=body, shortcut=shortcut, residual=residual)


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
