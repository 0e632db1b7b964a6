"""Graphs to write as C, and what the compiled files answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.exports.c99.arena import arena_of
from octo_exp.exports.c99.code import Code, identifier
from octo_exp.exports.c99.verify import FLAGS, build, compiler, run
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


def random_codes(spec: ModelSpec, count: int) -> Tensor:
    """Codes [count, C, S, S] of a model's image: all of -128, all of 127, any."""
    image = spec.image
    codes = torch.randint(-128, 128, (count, image.channels, image.size, image.size), dtype=torch.int8)
    for i, code in enumerate((-128, 127)[:count]):
        codes[i] = code
    return codes


@dataclass(frozen=True, kw_only=True, eq=False)
class StandIn:
    """What a format asks of a graph."""

    spec: ModelSpec
    net: IntegerNet
    codes: Tensor
    profile: Any = None

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images whose codes are `codes`, 16 at a time."""
        start = self.spec.input
        for codes in self.codes.split(16):
            yield (codes.double() - start.zero).mul(start.scale).float(), torch.zeros(len(codes), dtype=torch.long)


def stand_in(spec: ModelSpec, *, images: int = 20, profile: Any = None) -> StandIn:
    return StandIn(spec=spec, net=IntegerNet(spec).eval(), codes=random_codes(spec, images), profile=profile)


def code_of(net: IntegerNet, name: str = "net") -> Code:
    return Code(name=identifier(name), net=net, arena=arena_of(net.spec))


def answers(net: IntegerNet, codes: Tensor, folder: Path, *, flags: tuple[str, ...] = FLAGS) -> Tensor:
    """What the C file of a net makes of codes, its own verification left aside."""
    code = code_of(net)
    source, header = folder / "net.c", folder / "net.h"
    header.write_text(code.header())
    source.write_text(code.source(header.name))
    build(compiler(), source, header, code.name, folder / "program", flags=flags)
    return run(folder / "program", codes, net.spec.classifier.out_channels)


class Residual(nn.Module):
    """relu(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A layer to be; what of it does not fit what comes before is left out."""

    kind: str
    channels: int
    kernel: int
    stride: int
    padded: bool
    relu: bool

    @property
    def odd(self) -> int:
        """The kernel of a convolution: images stay square."""
        return self.kernel | 1

    @property
    def least(self) -> int:
        """The smallest image that it reads."""
        if self.kind == "average" or (self.kind == "max" and not self.padded):
            return self.kernel
        return 1 if self.padded or self.kind in ("row", "residual", "bottleneck", "max") else self.odd


KINDS = ("conv", "row", "depthwise", "grouped", "max", "average", "residual", "bottleneck")


def _conv(part: Part, inputs: int, outputs: int, **options: Any) -> nn.Sequential:
    padding = options.pop("padding", part.odd // 2 if part.padded else 0)
    kernel, stride = options.pop("kernel", part.odd), options.pop("stride", part.stride)
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU6()] if part.relu else []))


def _module(part: Part, inputs: int) -> nn.Module:
    outputs, same = part.channels, {"padding": part.odd // 2}
    if part.kind == "row":
        return _conv(part, inputs, outputs, kernel=(1, part.odd), padding=(0, part.odd // 2), stride=1)
    if part.kind == "depthwise":
        return _conv(part, inputs, inputs, groups=inputs)
    if part.kind == "grouped":
        groups = next(g for g in (5, 3, 2, 1) if inputs % g == 0)
        return _conv(part, inputs, groups * (1 + outputs % 4), groups=groups)
    if part.kind == "max":
        return nn.MaxPool2d(part.kernel, part.stride, part.kernel // 2 if part.padded else 0)
    if part.kind == "average":
        return nn.AvgPool2d(part.kernel, part.stride)
    if part.kind == "residual":
        body = nn.Sequential(
            _conv(part, inputs, inputs, stride=1, groups=inputs, **same),
            _conv(part, inputs, inputs, stride=1, kernel=1, padding=0),
        )
        return Residual(body, nn.Identity())
    if part.kind == "bottleneck":
        body = nn.Sequential(_conv(part, inputs, outputs, **same), _conv(part, outputs, outputs + 1, stride=1, **same))
        return Residual(body, _conv(part, inputs, outputs + 1, kernel=1, padding=0))
    return _conv(part, inputs, outputs)


def network(channels: int, side: int, parts: list[Part], hidden: int) -> tuple[nn.Module, Tensor]:
    """(a network of a convolution, the parts that fit and one or two linear layers, norms settled, images)."""
    images = torch.randn(8, channels, side, side)
    layers: list[nn.Module] = [nn.Conv2d(channels, 5, 3, padding=1), nn.ReLU()]
    x = nn.Sequential(*layers)(images)
    for part in parts:
        if x.shape[2] < part.least:
            continue
        layers.append(_module(part, x.shape[1]))
        x = layers[-1](x)
    features = x[0].numel()
    layers += [nn.Flatten(), *([nn.Linear(features, hidden), nn.ReLU()] if hidden else [])]
    net = nn.Sequential(*layers, nn.Linear(hidden or features, 4))
    return settled(net, images), images


def quantized(channels: int, side: int, parts: list[Part], hidden: int, **settings: Any) -> IntegerNet:
    net, images = network(channels, side, parts, hidden)
    return IntegerNet(quantize_network(net, [images], **SETTINGS | settings)).eval()
