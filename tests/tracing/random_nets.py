"""Random small networks: stacks and branches of convolutions, linear heads, and parameters that are not trained."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn


class Residual(nn.Module):
    """x + f(x), or x + f(f(x)) with the same layer."""

    def __init__(self, layer, *, twice):
        super().__init__()
        self.layer, self.twice = layer, twice

    def forward(self, x):
        y = self.layer(x)
        return x + (self.layer(y) if self.twice else y)


class Concatenation(nn.Module):
    """Channels of several layers on the same input, and of the input itself."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return torch.cat([x, *(layer(x) for layer in self.layers)], 1)


class Positions(nn.Module):
    """[B, C, H, W] -> [B, H*W, C]."""

    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, the shape of one input, and what is traced of it."""

    net: nn.Module
    shape: tuple[int, ...]
    batch_size: int
    frozen: frozenset[str]

    def __repr__(self):
        trained = [name for name, parameter in self.net.named_parameters() if parameter.requires_grad]
        return f"{self.net} on {self.batch_size} x {self.shape}, frozen {sorted(self.frozen)}, trained {trained}"


def small(high, low=1):
    return st.integers(low, high)


@st.composite
def convolutions(draw, channels, size, *, same=False):
    """A convolution of `channels` that fits on images of `size`; same: one that keeps both."""
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    filters = channels if same else groups * draw(small(3))
    kernel, stride, padding, dilation = [], [], [], []
    is_same = same or draw(small(6)) == 1
    for extent in size:
        padding.append(draw(small(3, 0)))
        room = extent + 2 * padding[-1]
        kernel.append(draw(small(5 if is_same else min(5, room))))
        dilation.append(draw(small(2)) if is_same or 2 * (kernel[-1] - 1) < room else 1)
        stride.append(1 if is_same else draw(small(3)))
    return nn.Conv2d(
        channels,
        filters,
        tuple(kernel),
        stride=tuple(stride),
        padding="same" if is_same else tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def bodies(draw, shape):
    """Blocks on images of `shape`, and the shape that they leave."""
    blocks = []
    for _ in range(draw(small(3))):
        kind = draw(st.sampled_from(["conv", "conv", "residual", "twice", "concatenation"]))
        channels, *size = shape
        if kind == "conv":
            block = draw(convolutions(channels, size))
        elif kind == "concatenation":
            block = Concatenation(*(draw(convolutions(channels, size, same=True)) for _ in range(draw(small(2)))))
        else:
            block = Residual(draw(convolutions(channels, size, same=True)), twice=kind == "twice")
        shape = tuple(block(torch.zeros(1, *shape)).shape[1:])
        blocks += [block, *draw(st.sampled_from([[], [nn.ReLU()], [nn.BatchNorm2d(shape[0])]]))]
    return blocks, shape


@st.composite
def heads(draw, width):
    """Linear layers on the last extent."""
    layers = []
    for _ in range(draw(small(2))):
        outputs = draw(small(7))
        layer = nn.Linear(width, outputs, bias=draw(st.booleans()))
        if outputs == width and draw(st.booleans()):
            layer = Residual(layer, twice=draw(st.booleans()))
        layers += [layer, *draw(st.sampled_from([[], [nn.ReLU()]]))]
        width = outputs
    return layers


@st.composite
def cases(draw):
    """Networks of up to eight layers on tiny inputs, double precision."""
    if draw(small(5)) == 1:
        shape = (draw(small(7)), draw(small(6)))
        layers = draw(heads(shape[-1]))
    else:
        shape = (draw(small(6)), draw(small(7, 2)), draw(small(7, 2)))
        layers, left = draw(bodies(shape))
        head = draw(st.sampled_from(["flat", "positions", "none"]))
        if head == "flat":
            layers += [nn.Flatten(), *draw(heads(left[0] * left[1] * left[2]))]
        elif head == "positions":
            layers += [Positions(), *draw(heads(left[0]))]
    net = nn.Sequential(*layers).double()
    return Case(net=net, shape=shape, batch_size=draw(small(3, 2)), frozen=draw(frozen_parts(net)))


@st.composite
def frozen_parts(draw, net):
    """Mark some parameters as not trained; return the names of layers that are to be frozen by name."""
    names = []
    for name, module in net.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        fate = draw(st.sampled_from(["trained"] * 5 + ["named", "weight", "bias", "both"]))
        if fate == "named":
            names.append(name)
        for key in {"weight": ["weight"], "bias": ["bias"], "both": ["weight", "bias"]}.get(fate, []):
            if key in own:
                own[key].requires_grad_(False)
    return frozenset(names)
