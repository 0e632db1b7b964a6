"""How a layer quantises its operands: the range that gradients pass, clipping, sharing and noise."""

import pytest
import torch
from torch import nn

from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import quantized, scheme


def test_hindsight_gradient_passes_inside_the_range_only():
    layer = quantized(nn.Linear(4, 3), scheme("int8", x__range="hindsight", x__momentum=0.0))
    layer(torch.tensor([[-1.0, 1.0, 0.5, 0.0]]))
    x = torch.tensor([[-5.0, 0.9, 5.0, 0.1]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad[0, 0] == 0
    assert x.grad[0, 2] == 0
    assert (x.grad[0, [1, 3]] != 0).all()


def test_the_gradient_of_a_float_product_passes_everywhere():
    layer = quantized(nn.Linear(4, 3), scheme("int8", output="fp32", x__range="hindsight", x__momentum=0.0))
    layer(torch.tensor([[-1.0, 1.0, 0.5, 0.0]]))
    x = torch.tensor([[-5.0, 0.9, 5.0, 0.1]], requires_grad=True)
    layer(x).sum().backward()
    assert (x.grad != 0).all()


def test_clipping_narrows_the_gradients_alone():
    layer = quantized(nn.Linear(8, 4), scheme("prc", clip__coefficient=0.5, w__granularity="channel"))
    shares = {}
    layer.observer = lambda layer, operand, t, q: shares.update({operand: float(q.scale.max() * 127 / t.abs().max())})
    x = torch.randn(3, 8, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn_like(y))
    assert shares == pytest.approx({"x": 1.0, "w": 1.0, "g": 0.5, "g_scaled": 0.5})


@pytest.mark.parametrize(("granularity", "operands"), [("tensor", ["g"]), ("channel", ["g", "g_scaled"])])
def test_the_gradient_is_quantized_once_where_both_roles_can_share_it(granularity, operands):
    layer = quantized(nn.Linear(8, 4), scheme("int8", g__range="hindsight", w__granularity=granularity))
    seen = []
    layer.observer = lambda layer, operand, t, q: seen.append(operand)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert seen == ["x", "w", *operands]
    # Each has its own state, which moves once a step.
    assert all(int(layer.quantizer_of(operand).count) == 1 for operand in operands)


def test_the_two_quantized_gradients_draw_their_own_noise():
    layer = quantized(nn.Linear(64, 32), scheme("int8", g__rounding="stochastic", w__granularity="channel"))
    g = torch.randn(16, 32)
    assert not torch.equal(layer.quantizer_g(g).values, layer.quantizer_g_scaled(g).values)


def test_noise_is_keyed_by_step_and_layer():
    clock = Clock(seed=1)
    layer = quantized(nn.Linear(64, 32), scheme("int8", g__rounding="stochastic"), clock=clock)
    x, g = torch.randn(16, 64), torch.randn(16, 32)

    def gradient() -> torch.Tensor:
        layer.zero_grad()
        layer(x).backward(g)
        return layer.weight.grad.clone()

    first = gradient()
    assert torch.equal(gradient(), first)
    clock.step = 1
    assert not torch.equal(gradient(), first)


def test_both_gradients_of_a_layer_with_a_scale_a_channel_have_ranges_of_before():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    convert(net, scheme("int8", w__granularity="channel", g__range="hindsight"), impl="torch", clock=Clock())
    for _ in range(3):
        net(torch.randn(5, 4)).square().sum().backward()
    assert [int(net[2].quantizer_of(name).count) for name in ("g", "g_scaled")] == [3, 3]
