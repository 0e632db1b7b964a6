"""Graphs for the ONNX export without a run: a spec, and test images as a datamodule gives them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from octo_exp.exports.subject import Graph
from octo_exp.graph.calibrate import quantize_network
from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.spec import ModelSpec
from tests.graph.calibrate.helpers import settled

SETTINGS: dict[str, Any] = {
    "activations": "absmax",
    "percentile": 99.99,
    "symmetric": False,
    "weights_per_channel": True,
}


def graph_of(spec: ModelSpec, images: Tensor, batch: int = 16) -> Graph:
    """A spec with test images [N, C, S, S]; their labels are the classes that it gives."""
    net = IntegerNet(spec).eval()
    pairs = [(x, net(x).argmax(1)) for x in images.split(batch)]
    source = SimpleNamespace(test_batches=lambda: iter(pairs))
    return Graph(source=source, spec=net.spec, original=spec, net=net, origin="ptq", profile=None)


def images_of(spec: ModelSpec, count: int, seed: int = 0) -> Tensor:
    """Images [count, C, S, S] whose codes are anything."""
    rng, image = np.random.default_rng(seed), spec.image
    codes = rng.integers(-128, 128, (count, image.channels, image.size, image.size))
    scale = 1.0 if spec.input.is_codes else spec.input.scale
    return torch.from_numpy((codes - spec.input.zero) * scale).float()


def _block(draw: st.DrawFn, channels: int) -> tuple[list[nn.Module], int]:
    """A piece of a network that keeps the side of its images, and the channels that it gives."""
    kind = draw(st.sampled_from(["conv", "pointwise", "depthwise", "grouped"]))
    outputs = channels if kind == "depthwise" else 2 * draw(st.integers(1, 12))
    groups = {"depthwise": channels, "grouped": 2}.get(kind, 1)
    kernel = 1 if kind == "pointwise" else draw(st.sampled_from([3, 5]))
    conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, groups=groups, bias=draw(st.booleans()))
    activation = draw(st.sampled_from([[], [nn.ReLU()], [nn.ReLU6()]]))
    return [conv, *([nn.BatchNorm2d(outputs)] if draw(st.booleans()) else []), *activation], outputs


class Residual(nn.Module):
    """x + f(x), with or without ReLU."""

    def __init__(self, channels: int, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv(x))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[ModelSpec, Tensor]:
    """A small network of random layers, quantised, and images for it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels, side = 2 * draw(st.integers(1, 2)), 4 * draw(st.integers(3, 5))
    images, layers = torch.randn(16, channels, side, side), []
    for _ in range(draw(st.integers(1, 4))):
        more, channels = _block(draw, channels)
        layers += more
        if draw(st.booleans()):
            layers.append(Residual(channels, draw(st.booleans())))
        pool = draw(st.sampled_from([None, nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1)]))
        if pool is not None and side >= 4 and side % 2 == 0:
            layers.append(pool)
            side //= 2
    layers += [nn.Flatten(), nn.Linear(channels * side**2, 16), nn.ReLU(), nn.Linear(16, 5)]
    net = settled(nn.Sequential(*layers), images)
    return quantize_network(net, [images], **SETTINGS), images
