"""LeNet-5 (LeCun et al., 1998): 5x5 convolutions 6-16-120, linear 84-classes, 32x32 input."""

from collections.abc import Sequence

from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.models.blocks import POOLS, conv_block, initialize, norm1d, pooled_size

LAYERS = ("c1", "c3", "c5", "f6")


class LeNet5(nn.Module):
    """C1 6@5x5, pool, C3 16@5x5, pool, C5 120@5x5, F6 84, output; [N, C, S, S] -> [N, classes].

    pool: max or average, 2x2. relu: those of `LAYERS` that a ReLU follows.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
        norm: str,
        pool: str,
        relu: Sequence[str],
    ) -> None:
        super().__init__()
        unknown = [name for name in relu if name not in LAYERS]
        if isinstance(relu, str) or unknown:
            raise UserError(f"model.relu={relu!r}: give a list of some of {', '.join(LAYERS)}")
        if pool not in POOLS:
            raise UserError(f"model.pool={pool!r} is unknown; choose one of {', '.join(POOLS)}")
        stages = [(5, 0, True), (5, 0, True), (5, 0, False)]
        size = pooled_size(image_size, kernels=stages, name="lenet5")
        self.features = nn.Sequential(
            *conv_block(in_channels, 6, 5, padding=0, norm=norm, pool=pool, relu="c1" in relu),
            *conv_block(6, 16, 5, padding=0, norm=norm, pool=pool, relu="c3" in relu),
            *conv_block(16, 120, 5, padding=0, norm=norm, relu="c5" in relu),
        )
        activation = [nn.ReLU(inplace=True)] if "f6" in relu else []
        self.classifier = nn.Sequential(
            nn.Linear(120 * size * size, 84), *norm1d(norm, 84), *activation, nn.Linear(84, num_classes)
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
