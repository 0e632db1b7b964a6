"""What update rules need to know of a network: its int8 convolutions as protocols, a convolution's shape as a value."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from torch import Tensor, nn

from octo_exp.graph.train.trained import Update


class UpdatableConv(Protocol):
    """An int8 convolution whose backward pass computes what `update` says and nothing else.

    weight [O, I/groups, kh, kw] and bias [O] are float masters of int8 and int32 values; w_scales is [O], x_scale a
    scalar; in_size and out_size are (H, W).
    """

    weight: nn.Parameter
    bias: nn.Parameter
    w_scales: Tensor
    x_scale: Tensor
    in_channels: int
    out_channels: int
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    update: Update


@runtime_checkable
class UpdatableNet(Protocol):
    """A network of such convolutions: `convs` from input to output, and after them the head.

    A quantised head is the last of `convs`; a float one is not among them.
    """

    head: nn.Module

    @property
    def convs(self) -> Sequence[UpdatableConv]:
        """Return its convolutions, in order."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return every parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A convolution's sizes: channels, groups, and (H, W) of kernel, input and output."""

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, int]
    in_size: tuple[int, int]
    out_size: tuple[int, int]

    @classmethod
    def of(cls, conv: UpdatableConv) -> Self:
        """Return the shape of a convolution."""
        height, width = conv.weight.shape[2:]
        return cls(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            groups=conv.groups,
            kernel=(height, width),
            in_size=conv.in_size,
            out_size=conv.out_size,
        )

    @property
    def depthwise(self) -> bool:
        """Whether each channel has a filter of its own."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def grouped(self) -> bool:
        """Whether channels are grouped without being depthwise: its input channels cannot be chosen one by one."""
        return self.groups > 1 and not self.depthwise

    @property
    def expands(self) -> bool:
        """Whether it is 1x1 with more outputs than inputs, as the first of an inverted bottleneck."""
        return self.kernel == (1, 1) and self.out_channels > self.in_channels


def head_inputs(net: UpdatableNet) -> int:
    """Return how many values the head reads of an image: channels, times pixels where it sees more than one."""
    weight = next(parameter for parameter in net.head.parameters() if parameter.dim() > 1)
    return weight[0].numel()


def backbone(net: UpdatableNet) -> list[UpdatableConv]:
    """Return the convolutions that update rules count; the head is always trained and never counted."""
    head: object = net.head
    return [conv for conv in net.convs if conv is not head]
