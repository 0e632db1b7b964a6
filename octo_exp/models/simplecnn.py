"""The demo's simplecnn: conv5x5/30, pool, two linear layers (433,890 parameters at 1x28x28)."""

from torch import Tensor, nn

from octo_exp.models.blocks import conv_block, initialize, norm1d, pooled_size


class SimpleCNN(nn.Module):
    """Unpadded 5x5 convolution, ReLU, 2x2 max pool, linear hidden, ReLU, linear; [N, C, S, S] -> [N, classes]."""

    def __init__(
        self, *, in_channels: int, num_classes: int, image_size: int, width: int, hidden: int, norm: str
    ) -> None:
        super().__init__()
        size = pooled_size(image_size, kernels=[(5, 0, True)], name="simplecnn")
        self.features = nn.Sequential(*conv_block(in_channels, width, 5, padding=0, norm=norm, pool="max"))
        self.classifier = nn.Sequential(
            nn.Linear(width * size * size, hidden),
            *norm1d(norm, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
