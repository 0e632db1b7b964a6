"""Plain feed-forward stacks written as a list: AlexNet, VGG-11 and the demo's layout of it are config values."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from octo_exp.errors import UserError
from octo_exp.models.blocks import conv_block, initialize, norm1d, pooled_size


class PlainConvNet(nn.Module):
    """3x3 convolutions with ReLU, "pool" where the list says so, then linear layers; [N, C, S, S] -> [N, classes].

    stages: output channels, or "pool" for a 2x2 max pool after the convolution before it. padding: 1 (usual) or 0.
    classifier: widths of the hidden linear layers. dropout: before each of them (0 for none).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
        stages: Sequence[int | str],
        padding: int,
        classifier: Sequence[int],
        dropout: float,
        norm: str,
    ) -> None:
        super().__init__()
        plan = _plan(stages)
        kernels = [(3, padding, pool) for _, pool in plan]
        size = pooled_size(image_size, kernels=kernels, name=type(self).__name__)
        layers: list[nn.Module] = []
        width = in_channels
        for outputs, pool in plan:
            layers += conv_block(width, outputs, 3, padding=padding, norm=norm, pool=pool)
            width = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(*_head([width * size * size, *classifier], num_classes, dropout, norm))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.features(x).flatten(1))


def _plan(stages: Sequence[int | str]) -> list[tuple[int, bool]]:
    plan: list[tuple[int, bool]] = []
    for stage in stages:
        if stage == "pool" and plan:
            plan[-1] = (plan[-1][0], True)
        elif isinstance(stage, int) and stage > 0:
            plan.append((stage, False))
        else:
            raise UserError(f"model.stages holds {stage!r}; use channel counts, and 'pool' after a convolution")
    return plan


def _head(widths: list[int], num_classes: int, dropout: float, norm: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Dropout(dropout)] if dropout > 0 else []
        layers += [nn.Linear(inputs, outputs), *norm1d(norm, outputs), nn.ReLU(inplace=True)]
    return [*layers, nn.Linear(widths[-1], num_classes)]
