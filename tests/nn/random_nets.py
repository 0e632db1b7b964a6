"""Networks as other people write them, drawn by hypothesis: hooked, shared, nested, tied, frozen, parametrised."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune


class OwnConv(nn.Conv2d):
    """A subclass that computes what its torch class does."""


class OwnLinear(nn.Linear):
    """A subclass that computes what its torch class does."""


class Lora(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 0.5


class Residual(nn.Module):
    """A shared convolution, run twice, with functional ReLU around a nested body."""

    def __init__(self, channels: int, body: nn.Module) -> None:
        super().__init__()
        self.shared, self.body = nn.Conv2d(channels, channels, 1), body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.shared(F.relu(self.shared(x)) + self.body(x)))


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(features, features), nn.Linear(features, features), nn.ReLU()
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.relu(self.first(x)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A way to build one network, the same in every call, and the shape of its images."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch: int


WRAPPERS = ("none", "weight_norm", "spectral_norm", "pruned", "frozen", "hook")


def _wrapped(layer: nn.Module, wrapper: str) -> nn.Module:
    if wrapper == "weight_norm":
        return parametrizations.weight_norm(layer)
    if wrapper == "spectral_norm":
        return parametrizations.spectral_norm(layer)
    if wrapper == "pruned":
        return prune.l1_unstructured(layer, "weight", amount=0.3)
    if wrapper == "frozen":
        layer.requires_grad_(False)
    if wrapper == "hook":
        layer.hooked = 0
        layer.register_forward_hook(lambda module, x, y: setattr(module, "hooked", module.hooked + 1))
    return layer


def _convolution(draw: st.DrawFn, channels: int, size: int) -> tuple[Callable[[], nn.Module], int, int]:
    """(what builds it, output channels, output size) of a convolution that fits images of this size."""
    groups = draw(st.sampled_from([g for g in (1, 1, 2, channels) if channels % g == 0]))
    outputs = groups * draw(st.integers(1, 3 if groups == 1 else 2))
    kernel, padding = draw(st.integers(1, 3)), draw(st.integers(0, 1))
    dilation = draw(st.integers(1, 2))
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        kernel = 1
    stride = draw(st.integers(1, 3))
    kind = draw(st.sampled_from([nn.Conv2d, nn.Conv2d, OwnConv]))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    bias, wrapper = draw(st.booleans()), draw(st.sampled_from(WRAPPERS))
    after = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return lambda: _wrapped(kind(channels, outputs, kernel, bias=bias, **options), wrapper), outputs, after


@st.composite
def networks(draw: st.DrawFn) -> Drawn:
    """Draw a small network and its images, 1x1 pixel ones among them."""
    channels, size = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 5, 7, 8]))
    shape, builders = (channels, size, size), []
    for _ in range(draw(st.integers(1, 3))):
        build, channels, size = _convolution(draw, channels, size)
        builders.append([build])
        if draw(st.booleans()):
            builders[-1].append(lambda c=channels: nn.BatchNorm2d(c))
        if draw(st.booleans()):
            inplace = draw(st.booleans())
            builders[-1].append(lambda inplace=inplace: nn.ReLU(inplace=inplace))
        pool = draw(st.integers(2, 3))
        if size >= pool and draw(st.booleans()):
            stride = draw(st.integers(1, pool))
            builders[-1].append(lambda k=pool, s=stride: nn.MaxPool2d(k, s))
            size = (size - pool) // stride + 1
        if draw(st.booleans()):
            inner = draw(st.booleans())
            body = (lambda c=channels: nn.Sequential(nn.Conv2d(c, c, 1), nn.ReLU())) if inner else nn.Identity
            builders[-1].append(lambda c=channels, body=body: Residual(c, body()))
    features = channels * size * size
    tail = [nn.Flatten]
    if draw(st.booleans()):
        tail.append(lambda: Tied(features))
    head = draw(st.sampled_from([nn.Linear, OwnLinear, Lora]))
    wrapper, classes = draw(st.sampled_from(WRAPPERS)), draw(st.integers(1, 4))
    tail.append(lambda: _wrapped(head(features, classes), wrapper))
    seed = draw(st.integers(0, 2**16))

    def build() -> nn.Module:
        torch.manual_seed(seed)
        blocks = [nn.Sequential(*[make() for make in block]) for block in builders]
        return nn.Sequential(*blocks, *[make() for make in tail])

    return Drawn(build=build, shape=shape, batch=draw(st.integers(2, 5)))
