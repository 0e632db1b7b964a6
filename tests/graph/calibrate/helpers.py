"""Networks to quantise, and a plan run in float64: what the graph would give without any rounding."""

from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from octo_exp.graph.calibrate.plan import Block, Conv, Plan
from octo_exp.graph.parts import PoolSpec
from tests.configs import compose_copy, node_of, options

# Widths that keep the tests short.
_NARROW = {
    "alexnet": ("stages=[16,pool,24,pool,32,40,40,pool]", "classifier=[64,48]"),
    "alexnet_octo": ("stages=[[16,11],pool,[24,5],pool,32,40,40,pool]", "classifier=[64,48]"),
    "resnet18": ("widths=[16,24,32,40]",),
    "vgg11": ("stages=[8,pool,16,pool,24,24,pool,32,32,pool,40,40,pool]", "classifier=[32,24]"),
    "vgg11_octo": ("stages=[8,16,24,24,pool,32,32,32,32]", "classifier=[64,48]"),
}
_GREY = ("alexnet_octo", "lenet5", "simplecnn", "vgg11_octo")


def _models() -> dict[str, tuple[int, int, tuple[str, ...]]]:
    nodes = {name: node_of("model", name) for name in options("model")}
    # hf.yaml, of the global package, has no target of its own: tests/models/test_hf.py.
    targets = {name: str(OmegaConf.to_container(node).get("_target_")) for name, node in nodes.items()}
    ours = {name: node for name, node in nodes.items() if targets[name].startswith("octo_exp.models.")}
    return {name: (1 if name in _GREY else 3, node.image_size, _NARROW.get(name, ())) for name, node in ours.items()}


# Every float network of conf/model: name -> channels and side of its images, overrides.
MODELS = _models()


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
    if isinstance(layer, PoolSpec):
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
