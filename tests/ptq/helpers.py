"""Networks to quantise, and a plan run in float64: what the graph would give without any rounding."""

from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from octo_exp.ptq.plan import Block, Conv, Plan, Pool
from tests.configs import compose_copy

# name -> channels and side of its images; widths that keep the tests short.
MODELS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "alexnet": (3, 32, ("stages=[16,pool,24,pool,32,40,40,pool]", "classifier=[64,48]")),
    "lenet5": (1, 32, ()),
    "mobilenet_v2": (3, 32, ()),
    "resnet18": (3, 32, ("widths=[16,24,32,40]",)),
    "resnet20": (3, 32, ()),
    "simplecnn": (1, 28, ()),
    "vgg11": (3, 32, ("stages=[8,pool,16,pool,24,24,pool,32,32,pool,40,40,pool]", "classifier=[32,24]")),
    "vgg11_octo": (1, 28, ("stages=[8,16,24,24,pool,32,32,32,32]", "classifier=[64,48]")),
}


def model(name: str, *overrides: str, channels: int, norm: str) -> nn.Module:
    """A network of conf/model."""
    settings = [f"+model={name}", f"+data.channels={channels}", "+data.classes=10", f"model.norm={norm}"]
    settings += [f"model.{override}" for override in overrides]
    return instantiate(compose_copy(None, *settings).model, _convert_="all")


def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """The net with norms as training leaves them: statistics of the images, uneven gammas and betas."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
    with torch.no_grad():
        net.train()(images)
    return net.eval()


def shipped(name: str, norm: str, *, batch: int = 8) -> tuple[nn.Module, Tensor]:
    """(a network of MODELS with sane norms, images [batch, C, S, S] for it)."""
    channels, side, overrides = MODELS[name]
    images = torch.randn(batch, channels, side, side)
    return settled(model(name, *overrides, channels=channels, norm=norm), images), images


def run_conv(conv: Conv, x: Tensor) -> Tensor:
    """A convolution of a plan with its activation."""
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, 1, conv.groups).clamp(*conv.bounds)


def run_layer(layer: Any, x: Tensor) -> Tensor:
    """A layer of a plan in float64."""
    if isinstance(layer, Conv):
        return run_conv(layer, x)
    if isinstance(layer, Pool):
        if layer.kind == "max":
            return F.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
        return F.avg_pool2d(x, layer.kernel, layer.stride)
    assert isinstance(layer, Block)
    body = shortcut = x
    for conv in layer.body:
        body = run_conv(conv, body)
    for conv in layer.shortcut:
        shortcut = run_conv(conv, shortcut)
    return (body + shortcut).clamp(*layer.bounds)


def run_plan(plan: Plan, images: Tensor) -> Tensor:
    """images [N, C, S, S] -> logits [N, classes], float64."""
    x = images.double()
    for layer in (*plan.layers, plan.classifier):
        x = run_layer(layer, x)
    return x.flatten(1)
