"""ResNet of basic blocks (He et al., CVPR 2016): ResNet-18 of table 1, and 6n+2 layers for small images, n = 3: 20."""

from collections.abc import Sequence

from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.models.blocks import initialize, norm2d


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias),
            *norm2d(norm, outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=bias),
            *norm2d(norm, outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=bias), *norm2d(norm, outputs))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body(x) + shortcut(x))."""
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


STEMS = ("small", "large")


class ResNet(nn.Module):
    """Stem, groups of basic blocks, global average pool, linear; [N, C, S, S] -> [N, classes].

    stem: small, a 3x3 convolution, or large, 7x7 of stride 2 and a 3x3 max pool of stride 2. widths and blocks: output
    channels and number of blocks of each group; every group but the first halves the image.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
        stem: str,
        widths: Sequence[int],
        blocks: Sequence[int],
        norm: str,
    ) -> None:
        super().__init__()
        _check(image_size, stem, widths, blocks)
        layers = _stem(stem, in_channels, widths[0], norm)
        width = widths[0]
        for group, (outputs, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                stride = 2 if group > 0 and index == 0 else 1
                layers.append(BasicBlock(width, outputs, stride=stride, norm=norm))
                width = outputs
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(width, num_classes)
        initialize(self)
        self._tame_residuals()

    def _tame_residuals(self) -> None:
        """Without a norm, scale each branch's last convolution so that the sum of branches keeps its variance."""
        blocks = [m for m in self.modules() if isinstance(m, BasicBlock)]
        for block in blocks:
            last = block.body[-1]
            if isinstance(last, nn.Conv2d):
                last.weight.data.mul_(len(blocks) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class ResNetCifar(ResNet):
    """Small stem of 16 channels, three groups of `blocks` blocks at widths 16, 32, 64 (section 4.2 of the paper)."""

    def __init__(self, *, in_channels: int, num_classes: int, image_size: int, blocks: int, norm: str) -> None:
        super().__init__(
            in_channels=in_channels,
            num_classes=num_classes,
            image_size=image_size,
            stem="small",
            widths=(16, 32, 64),
            blocks=(blocks,) * 3,
            norm=norm,
        )


def _stem(stem: str, inputs: int, outputs: int, norm: str) -> list[nn.Module]:
    kernel, stride = (7, 2) if stem == "large" else (3, 1)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=norm == "none")
    layers: list[nn.Module] = [conv, *norm2d(norm, outputs), nn.ReLU(inplace=True)]
    return [*layers, nn.MaxPool2d(3, 2, 1)] if stem == "large" else layers


def _check(image_size: int, stem: str, widths: Sequence[int], blocks: Sequence[int]) -> None:
    if stem not in STEMS:
        raise UserError(f"model.stem={stem!r} is unknown; choose one of {', '.join(STEMS)}")
    if not widths or len(widths) != len(blocks) or min(*widths, *blocks) < 1:
        raise UserError(
            f"model.widths={list(widths)} and model.blocks={list(blocks)} must name as many groups, each of at least 1"
        )
    shrinks = (4 if stem == "large" else 1) * 2 ** (len(widths) - 1)
    if image_size < shrinks:
        raise UserError(f"model.image_size={image_size} is below the strides' product {shrinks}; use larger images")
