"""What update rules need to know of a network: which of its convolutions count, and the shape of each as a value."""

from dataclasses import dataclass
from typing import Self

from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.modules import McuConv2d


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
    def of(cls, conv: McuConv2d) -> Self:
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


def head_inputs(net: McuNet) -> int:
    """Return how many values the head reads of an image: channels, times pixels where it sees more than one."""
    weight = next(parameter for parameter in net.head.parameters() if parameter.dim() > 1)
    return weight[0].numel()


def backbone(net: McuNet) -> list[McuConv2d]:
    """Return the convolutions that update rules count; the head is always trained and never counted."""
    return [conv for conv in net.convs if conv is not net.head]
