"""MobileNetV2 (Sandler et al., CVPR 2018, table 2): inverted bottlenecks with linear ends and ReLU6, any width."""

from collections.abc import Sequence

from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.models.blocks import initialize, norm2d

# (expansion, output channels at width 1, blocks) of the seven stages.
STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def scaled_channels(channels: int, width: float) -> int:
    """channels * width as a multiple of 8, to the nearest but at least 8 and never below 90 % of the product."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class InvertedBottleneck(nn.Module):
    """1x1 expansion (none where it is 1), 3x3 depthwise, 1x1 without activation; plus the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int, norm: str) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = _convolution(inputs, hidden, 1, norm=norm) if expansion > 1 else []
        self.body = nn.Sequential(
            *expand,
            *_convolution(hidden, hidden, 3, stride=stride, groups=hidden, norm=norm),
            *_convolution(hidden, outputs, 1, norm=norm)[:-1],
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return body(x), or x + body(x)."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Stem, seven stages of bottlenecks, 1x1 convolution, global average pool, linear; [N, C, S, S] -> [N, classes].

    width: multiplies all channels but those of the last convolution, which has 1280 or more (as the paper has it).
    strides: of the stem, then of each stage's first block: [2, 1, 2, 2, 2, 1, 2, 1] is the paper's, for 224x224.
    """

    def __init__(
        self, *, in_channels: int, num_classes: int, image_size: int, width: float, strides: Sequence[int], norm: str
    ) -> None:
        super().__init__()
        _check(image_size, width, strides)
        channels = scaled_channels(32, width)
        layers: list[nn.Module] = _convolution(in_channels, channels, 3, stride=strides[0], norm=norm)
        for (expansion, base, blocks), first in zip(STAGES, strides[1:], strict=True):
            outputs = scaled_channels(base, width)
            for stride in (first, *[1] * (blocks - 1)):
                layers.append(InvertedBottleneck(channels, outputs, stride=stride, expansion=expansion, norm=norm))
                channels = outputs
        last = scaled_channels(1280, max(1.0, width))
        layers += _convolution(channels, last, 1, norm=norm)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(last, num_classes)
        initialize(self)
        self._tame_bottlenecks()

    def _tame_bottlenecks(self) -> None:
        """Without a norm: half the variance where no ReLU follows, and a sum of branches that keeps its variance."""
        blocks = [m for m in self.modules() if isinstance(m, InvertedBottleneck)]
        additions = sum(block.adds for block in blocks)
        for block in blocks:
            last = block.body[-1]
            if isinstance(last, nn.Conv2d):
                last.weight.data.mul_((2 * additions if block.adds else 2) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _convolution(
    inputs: int, outputs: int, kernel: int, *, norm: str, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Return convolution, optional norm and ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=norm == "none")
    return [conv, *norm2d(norm, outputs), nn.ReLU6(inplace=True)]


def _check(image_size: int, width: float, strides: Sequence[int]) -> None:
    if not width > 0:
        raise UserError(f"model.width={width} must be above 0")
    if len(strides) != 1 + len(STAGES) or any(stride not in (1, 2) for stride in strides):
        raise UserError(f"model.strides={list(strides)} must be {1 + len(STAGES)} numbers of 1 or 2: stem, then stages")
    shrinks = 2 ** sum(stride == 2 for stride in strides)
    if image_size < shrinks:
        raise UserError(
            f"model.image_size={image_size} is below its strides' product {shrinks}; set model.strides to 1s"
        )
