"""LeNet-5 (LeCun et al., 1998) with ReLU and max pooling: 5x5 convolutions 6-16-120, linear 84-classes, 32x32 input."""

from torch import Tensor, nn

from octo_exp.models.blocks import conv_block, initialize, norm1d, pooled_size


class LeNet5(nn.Module):
    """C1 6@5x5, pool, C3 16@5x5, pool, C5 120@5x5, F6 84, output; [N, C, S, S] -> [N, classes]."""

    def __init__(self, *, in_channels: int, num_classes: int, image_size: int, norm: str) -> None:
        super().__init__()
        stages = [(5, 0, True), (5, 0, True), (5, 0, False)]
        size = pooled_size(image_size, kernels=stages, name="lenet5")
        self.features = nn.Sequential(
            *conv_block(in_channels, 6, 5, padding=0, norm=norm, pool=True),
            *conv_block(6, 16, 5, padding=0, norm=norm, pool=True),
            *conv_block(16, 120, 5, padding=0, norm=norm, pool=False),
        )
        self.classifier = nn.Sequential(
            nn.Linear(120 * size * size, 84), *norm1d(norm, 84), nn.ReLU(inplace=True), nn.Linear(84, num_classes)
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.features(x).flatten(1))
