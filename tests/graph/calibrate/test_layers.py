"""Every layer of every model's graph against the float layer: each rounding is at most half a step, and only that.

The float network's own tensor is quantised and given to the graph's layer (teacher forcing), so errors do not add up.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.graph.calibrate import quantize_network
from octo_exp.graph.calibrate.plan import Block, Conv
from octo_exp.graph.calibrate.traced import plan_of, trace
from octo_exp.graph.parts import PoolSpec
from octo_exp.graph.spec import ConvSpec
from octo_exp.graph.train.modules import build_layer
from tests.graph.calibrate.helpers import MODELS, run_conv, run_layer, shipped

# Half a step, and a thousandth for what float32 makes of the products and of the ranges.
HALF = 0.501
OPTIONS = {"mode": "integer", "quantize_gradient": False}


def codes_of(x: Tensor, scale: float, zero: int) -> Tensor:
    return ((x / scale).round() + zero).clamp(-128, 127)


def run(spec: Any, codes: Tensor) -> Tensor:
    with torch.no_grad():
        return build_layer(spec, **OPTIONS)(codes.float()).double()


def within(t: Tensor, scale: float, zero: int, bounds: tuple[float, float]) -> Tensor:
    return t.clamp(*bounds).clamp((-128 - zero) * scale, (127 - zero) * scale)


def check_conv(conv: Conv, spec: ConvSpec, x: Tensor) -> None:
    """Codes of x, of the weight, of the bias and of the output: each half a step from what it stands for."""
    codes = codes_of(x, spec.x_scale, spec.x_zero)
    x_error = ((codes - spec.x_zero) * spec.x_scale - x).abs()
    assert x_error.max() <= HALF * spec.x_scale
    steps = torch.tensor(spec.w_scales).double()
    weight = torch.tensor(spec.weight).double() * steps.reshape(-1, 1, 1, 1)
    w_error = (weight - conv.weight).abs()
    assert (w_error.flatten(1).amax(1) <= HALF * steps).all()
    bias = torch.tensor(spec.bias).double() * steps * spec.x_scale
    b_error = (bias - conv.bias).abs()
    assert (b_error <= HALF * steps * spec.x_scale).all()
    y = (run(spec, codes) - spec.y_zero) * spec.y_scale
    options = (conv.stride, conv.padding, 1, conv.groups)
    exact = F.conv2d((codes - spec.x_zero) * spec.x_scale, weight, bias, *options)
    wanted = within(exact, spec.y_scale, spec.y_zero, conv.bounds)
    assert (y - wanted).abs().max() <= HALF * spec.y_scale
    # By the triangle inequality, from the float layer: what input, weight and bias add, and half a step.
    budget = F.conv2d(x_error, conv.weight.abs(), b_error, *options) + HALF * spec.y_scale
    budget += F.conv2d((codes - spec.x_zero).abs() * spec.x_scale, w_error, None, *options)
    assert ((y - run_conv(conv, x)).abs() <= budget).all()


def check_block(block: Block, spec: Any, x: Tensor) -> None:
    ends = []
    for convs, specs in ((block.body, spec.body), (block.shortcut, spec.shortcut)):
        # The codes that the block makes itself, and the float tensors beside them.
        first = spec.body[0]
        codes, value, step = codes_of(x, first.x_scale, first.x_zero), x, (first.x_scale, first.x_zero)
        for conv, conv_spec in zip(convs, specs, strict=True):
            check_conv(conv, conv_spec, value)
            codes, value = run(conv_spec, codes), run_conv(conv, value)
            step = (conv_spec.y_scale, conv_spec.y_zero)
        ends.append((codes - step[1]) * step[0])
    add = spec.residual
    y = (run(spec, codes_of(x, first.x_scale, first.x_zero)) - add.y_zero) * add.y_scale
    wanted = within(sum(ends), add.y_scale, add.y_zero, block.bounds)
    assert (y - wanted).abs().max() <= HALF * add.y_scale


def check_pool(pool: PoolSpec, spec: Any, x: Tensor, scale: float, zero: int) -> None:
    codes = codes_of(x, scale, zero)
    if pool.kind == "max":
        assert torch.equal(run(spec, codes), codes_of(run_layer(pool, x), scale, zero))
    else:
        assert (run(spec, codes) - run_layer(pool, codes)).abs().max() <= 0.5


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", MODELS)
def test_each_layer_errs_by_half_a_step(name, norm):
    net, images = shipped(name, norm, batch=4)
    settings = {"activations": "absmax", "percentile": 0, "symmetric": False}
    spec = quantize_network(net, [images], **settings, weights_per_channel=norm == "none")
    plan = plan_of(trace(net, images))
    x, step = images.double(), (spec.input.scale, spec.input.zero)
    layers = zip((*plan.layers, plan.classifier), (*spec.layers, spec.classifier), strict=True)
    for layer, layer_spec in layers:
        if isinstance(layer, PoolSpec):
            check_pool(layer, layer_spec, x, *step)
        elif isinstance(layer, Conv):
            check_conv(layer, layer_spec, x)
            step = (layer_spec.y_scale, layer_spec.y_zero)
        else:
            check_block(layer, layer_spec, x)
            step = (layer_spec.residual.y_scale, layer_spec.residual.y_zero)
        if not isinstance(layer, PoolSpec):
            assert (step[1] == -128) == (layer.bounds[0] == 0)
        x = run_layer(layer, x)
