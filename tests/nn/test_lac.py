"""LAC: the compensation of the zero point's cross term in the output, its gradients, and the oracle above it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.nn.helpers import quantized, relative, scheme
from tests.nn.test_layers import dequantized_output, inputs


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_zero_point_identity_needs_its_cross_term(padding, stride):
    module = nn.Conv2d(3, 6, 3, padding=padding, stride=stride)
    x = inputs(module)
    exact = quantized(copy.deepcopy(module), scheme("lac"))
    exact(x)
    exact.eval()
    assert relative(exact(x), dequantized_output(exact, x)) <= 1e-5
    with torch.no_grad():
        exact.compensator.theta.fill_(-1.0)
    assert relative(exact(x), dequantized_output(exact, x)) > 0.1


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_theta_gives_back_its_share_of_the_term(granularity):
    built = scheme("lac", compensation__granularity=granularity)
    layer = quantized(nn.Conv2d(3, 4, 3, padding=1), built, input_shape=(3, 9, 9))
    x = inputs(layer)
    exact = layer(x).detach()
    with torch.no_grad():
        layer.compensator.theta.fill_(0.25)
    y = layer(x)
    xq, wq = layer.quantizer_x.eval()(x), layer.quantizer_w(layer.weight.detach())
    term = xq.scale * xq.zero_point * wq.dequantize().flatten(1).sum(1)
    assert relative(y, exact - 0.25 * term.reshape(-1, 1, 1)) <= 1e-5
    g = torch.randn_like(y)
    y.backward(g)
    expected = -(g * term.reshape(-1, 1, 1)).sum(0)
    expected = expected.sum((1, 2)) if granularity == "channel" else expected
    assert relative(layer.compensator.theta.grad, expected) <= 1e-5


@pytest.mark.parametrize("theta", [-1.0, 0.0, 0.5])
def test_weight_gradient_is_that_of_the_truncated_forward(theta):
    # y = sum (x^ - theta*s_x*z_x) w^, so dw = sum g (x^ - theta*s_x*z_x): the padding holds real 0 in x^.
    built = scheme("lac", compensation__theta_init=theta, grad_weight="fake", grad_input="fake", g="null")
    layer = quantized(nn.Conv2d(3, 4, 3, padding=1), built)
    x = inputs(layer)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    xq = layer.quantizer_x.eval()(x)
    padded = F.pad(xq.dequantize(), (1, 1, 1, 1)) - theta * xq.scale * xq.zero_point
    expected = torch.nn.grad.conv2d_weight(padded.double(), layer.weight.shape, g.double())
    assert relative(layer.weight.grad, expected) <= 1e-5


def test_compensation_alone_repairs_the_dropped_term():
    module = nn.Conv2d(8, 12, 3, padding=1)
    layer = quantized(copy.deepcopy(module), scheme("lac", compensation__theta_init=-1.0))
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)

    def batch() -> torch.Tensor:
        return torch.relu(torch.randn(16, 8, 10, 10, generator=generator) + 0.2)

    held_out = [batch() for _ in range(4)]

    def errors() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([layer(x) - module(x) for x in held_out])

    before = errors()
    optimizer = torch.optim.Adam(layer.compensator.parameters(), lr=0.02)
    for _ in range(100):
        x = batch()
        optimizer.zero_grad()
        F.mse_loss(layer(x), module(x).detach()).backward()
        optimizer.step()
    after = errors()
    assert after.square().mean().sqrt() <= 0.9 * before.square().mean().sqrt()
    compensation = (after - before).mean((0, 1, 3, 4))
    cosine = F.cosine_similarity(compensation, -before.mean((0, 1, 3, 4)), dim=0)
    assert cosine > 0.5


def test_the_oracle_returns_the_float_product():
    module = nn.Conv2d(3, 6, 3, padding=1)
    layer = quantized(copy.deepcopy(module), scheme("octo_ec", bits=4))
    x = inputs(module)
    assert relative(layer(x), module(x)) <= 1e-5
    plain = quantized(copy.deepcopy(module), scheme("octo", bits=4))
    assert relative(plain(x), module(x)) > 0.02
