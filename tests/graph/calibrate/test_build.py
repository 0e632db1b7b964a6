"""Weights, scales and biases of a graph, and the channels for which the usual rule would not do."""

import numpy as np
import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate import quantize_network
from octo_exp.graph.calibrate.graph_of_plan import BIAS_LIMIT, weight_scales
from octo_exp.graph.spec import DEAD_SCALE, ModelSpec
from octo_exp.graph.train.graph_net import McuNet


def quantized(net: nn.Module, images: torch.Tensor, *, per_channel: bool = True) -> ModelSpec:
    settings = {"activations": "absmax", "percentile": 0, "symmetric": False}
    return quantize_network(net, [images], **settings, weights_per_channel=per_channel)


def two_layers(channels: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels * 25, 4),
    ).eval()


def test_weights_have_one_scale_a_channel_or_one_a_layer():
    net, images = two_layers(), torch.randn(8, 3, 7, 7)
    peaks = (net[0].weight / (1 + 1e-5) ** 0.5).abs().flatten(1).amax(1).detach() / 127
    first = quantized(net, images).convs[0]
    np.testing.assert_allclose(first.w_scales, peaks.numpy(), rtol=1e-6)
    assert (np.abs(first.weight).reshape(8, -1).max(1) == 127).all()
    first = quantized(net, images, per_channel=False).convs[0]
    np.testing.assert_allclose(first.w_scales, float(peaks.max()), rtol=1e-6)


def test_relu6_ends_at_6_and_images_at_their_extremes():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(4 * 49, 2)).eval()
    images = torch.linspace(-30, 50, 2 * 49).reshape(2, 1, 7, 7)
    spec = quantized(net, images)
    assert spec.input.scale == pytest.approx(80 / 255)
    assert spec.input.zero == round(-128 + 30 / (80 / 255))
    assert (spec.convs[0].y_zero, spec.convs[0].y_scale) == (-128, pytest.approx(6 / 255))


@pytest.mark.parametrize("per_channel", [True, False])
def test_channels_of_zeros_faint_ones_and_large_biases_keep_their_output(per_channel):
    net, images = two_layers(), torch.randn(8, 3, 7, 7)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.0, 1e-6, 1e-12, 1e-12, 1.0, 1.0, 1.0, 1.0]))
        net[1].bias.copy_(torch.tensor([0.5, 0.1, 3.0, -3.0, 0.0, 0.0, 1.0, 0.0]))
    spec = quantized(net, images, per_channel=per_channel)
    first = spec.convs[0]
    assert spec.dead_channels == 0
    assert (np.abs(first.bias.astype(np.int64)) <= BIAS_LIMIT).all()
    with torch.no_grad():
        wanted = net[:3](images)
        graph = McuNet.with_classifier(spec, mode="integer")
        codes = graph.layers[0](graph.input(images))
    error = ((codes - first.y_zero) * first.y_scale - wanted).abs().amax((0, 2, 3))
    # The channels without a weight: half a step of the output, and half of the bias's.
    half_steps = (first.y_scale + first.x_scale * torch.tensor(first.w_scales)) / 2
    assert (error[:4] <= 1.001 * half_steps[:4]).all()
    assert error.max() <= 3 * first.y_scale


def test_scales_of_one_layer():
    weight = torch.tensor([[127.0, -63.5], [0.0, 0.0], [1e-9, 0.0], [254e-6, 0.0]]).double()
    bias = torch.zeros(4).double()
    # A channel of zeros takes the largest scale; faint ones the smallest that counts as alive.
    wanted = torch.tensor([1.0, 1.0, DEAD_SCALE, DEAD_SCALE])
    assert torch.equal(weight_scales(weight, bias, 0.1, per_channel=True), wanted)
    assert torch.equal(weight_scales(weight, bias, 0.1, per_channel=False), torch.ones(4))
    # A layer that is faint as a whole keeps its codes.
    faint = weight_scales(weight * 1e-9, bias, 0.1, per_channel=True)
    torch.testing.assert_close(faint, torch.full((4,), 1e-9), rtol=1e-6, atol=0)
    assert torch.equal(weight_scales(weight * 0, bias, 0.1, per_channel=True), torch.ones(4))
    # 2^30 steps of x_scale * w_scale hold the bias.
    large = weight_scales(weight, torch.tensor([0.0, 0.0, 2.0**30, 0.0]).double(), 0.5, per_channel=True)
    assert torch.equal(large, torch.tensor([1.0, 1.0, 2.0, DEAD_SCALE]))
    large = weight_scales(weight, torch.tensor([0.0, 0.0, 2.0**30, 0.0]).double(), 0.5, per_channel=False)
    assert torch.equal(large, torch.full((4,), 2.0))


def test_a_network_that_gives_only_zeros_becomes_one_that_does():
    net, images = two_layers(), torch.randn(8, 3, 7, 7)
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.fill_(-1.0)
        net[4].bias.zero_()
    graph = McuNet.with_classifier(quantized(net, images), mode="integer")
    with torch.no_grad():
        assert torch.equal(graph(images), torch.zeros(8, 4))


def test_weights_that_are_no_numbers_are_refused():
    net = two_layers()
    with torch.no_grad():
        net[4].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        quantized(net, torch.randn(8, 3, 7, 7))
    net = two_layers()
    with torch.no_grad():
        # Dead by its ReLU in every image, so that no tensor shows it.
        net[1].bias[0] = -float("inf")
    with pytest.raises(UserError, match="not finite"):
        quantized(net, torch.randn(8, 3, 7, 7))
