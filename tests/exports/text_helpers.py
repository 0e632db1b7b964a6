"""Graphs to write as text, and a stand-in for the run that they come from."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from octo_exp.graph.calibrate.calibrate import quantize_network
from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.spec import BlockSpec, ConvSpec, Image, InputSpec, ModelSpec
from tests.graph.calibrate.helpers import settled, shipped
from tests.graph.helpers import conv_spec, pool_spec, residual_spec

PTQ = {"activations": "absmax", "percentile": 99.9, "symmetric": False, "weights_per_channel": True}


@dataclass
class FakeGraph:
    """What `export` needs of a Graph; images are random."""

    spec: ModelSpec
    images: int = 40
    batch: int = 16
    profile: None = None
    net: IntegerNet = field(init=False)

    def __post_init__(self) -> None:
        self.net = IntegerNet(self.spec).eval()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        codes = random_codes(self.spec, self.images)
        for part in ((codes.float() - self.spec.input.zero) * self.spec.input.scale).split(self.batch):
            yield part, torch.zeros(len(part), dtype=torch.long)


def random_codes(spec: ModelSpec, images: int) -> Tensor:
    channels, size = spec.image[:2]
    rng = np.random.default_rng(images)
    return torch.from_numpy(rng.integers(-128, 128, (images, channels, size, size)).astype(np.int8))


class Grouped(nn.Module):
    """Two groups, then a convolution whose kernel and padding are no squares."""

    def __init__(self) -> None:
        super().__init__()
        parts = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU()]
        parts += [nn.Conv2d(8, 5, (1, 3), padding=(0, 1)), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(5 * 25, 4)]
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


def quantized(name: str) -> ModelSpec:
    """A network of tests/graph/calibrate, or the grouped one, as an int8 graph."""
    torch.manual_seed(0)
    if name == "grouped":
        images = torch.randn(8, 3, 12, 12)
        return quantize_network(settled(Grouped(), images), [images], **PTQ)
    net, images = shipped(name, "none" if name == "lenet5" else "batch")
    return quantize_network(net, [images], **PTQ)


def odd_model(seed: int) -> ModelSpec:
    """What random models lack: groups with several channels, uneven kernels, strides, a pool with padding first."""
    rng = np.random.default_rng(seed)
    image = Image(4, int(rng.integers(11, 15)), float(rng.uniform(0.01, 0.1)), int(rng.integers(-128, 128)))
    start = InputSpec(scale=image.scale, zero=image.zero)
    pool = pool_spec(image, "max", 3, int(rng.integers(1, 3)), 1)
    image = image._replace(size=pool.out_size)
    grouped = conv_spec(rng, image, 6, 3, stride=int(rng.integers(1, 3)), groups=2, depthwise=False)
    uneven = _uneven(rng, grouped.gives)
    deep = conv_spec(rng, uneven.gives, 5, 3, groups=5, stride=1)
    add = residual_spec(deep.gives)
    block = BlockSpec(body=(conv_spec(rng, deep.gives, 5, 1),), shortcut=(), residual=add)
    image = deep.gives._replace(scale=add.y_scale, zero=add.y_zero)
    average = pool_spec(image, "average", 2, 1)
    image = image._replace(size=average.out_size)
    layers = (pool, grouped, uneven, deep, block, average)
    return ModelSpec(input=start, layers=layers, classifier=conv_spec(rng, image, 3, image.size, padding=0))


def _uneven(rng: np.random.Generator, image: Image) -> ConvSpec:
    weight = rng.integers(-128, 128, (5, image.channels, 1, 3)).astype(np.int8)
    return replace(conv_spec(rng, image, 5, 1), kernel_size=(1, 3), padding=(0, 1), weight=weight)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}
