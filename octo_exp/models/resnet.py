"""ResNet for small images (He et al., CVPR 2016, section 4.2): 6n+2 layers, widths 16-32-64; n = 3 is ResNet-20."""

from torch import Tensor, nn

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
        return self.relu(self.body(x) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """Stem 3x3/16, three groups of `blocks` blocks at widths 16, 32, 64, global average pool, linear."""

    def __init__(self, *, in_channels: int, num_classes: int, image_size: int, blocks: int, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, 16, 3, 1, 1, bias=norm == "none"),
            *norm2d(norm, 16),
            nn.ReLU(inplace=True),
        ]
        width = 16
        for group, outputs in enumerate((16, 32, 64)):
            for index in range(blocks):
                stride = 2 if group > 0 and index == 0 else 1
                layers.append(BasicBlock(width, outputs, stride=stride, norm=norm))
                width = outputs
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(64, num_classes)
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
        return self.classifier(self.features(x).flatten(1))
