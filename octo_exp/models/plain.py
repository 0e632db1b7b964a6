"""Plain feed-forward stacks written as a list: AlexNet, VGG-11 and the demo's layout of it are config values."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.models.blocks import conv_block, initialize, norm1d, pooled_size


class PlainConvNet(nn.Module):
    """Convolutions with ReLU, "pool" where the list says so, then linear layers; [N, C, S, S] -> [N, classes].

    stages: output channels of a 3x3 convolution, [channels, kernel] of another, or "pool" for a 2x2 max pool after the
    convolution before it. padding: of every convolution, in pixels. classifier: widths of the hidden linear layers.
    dropout: before each of them (0 for none).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
        stages: Sequence[int | str | Sequence[int]],
        padding: int,
        classifier: Sequence[int],
        dropout: float,
        norm: str,
    ) -> None:
        super().__init__()
        plan = _plan(stages)
        kernels = [(kernel, padding, pool) for _, kernel, pool in plan]
        size = pooled_size(image_size, kernels=kernels, name=type(self).__name__)
        layers: list[nn.Module] = []
        width = in_channels
        for outputs, kernel, pool in plan:
            layers += conv_block(width, outputs, kernel, padding=padding, norm=norm, pool="max" if pool else None)
            width = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(*_head([width * size * size, *classifier], num_classes, dropout, norm))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _plan(stages: Sequence[int | str | Sequence[int]]) -> list[tuple[int, int, bool]]:
    """(output channels, kernel side, pooled?) of each convolution."""
    plan: list[tuple[int, int, bool]] = []
    for stage in stages:
        if stage == "pool" and plan:
            plan[-1] = (*plan[-1][:2], True)
            continue
        sizes = [stage, 3] if isinstance(stage, int) else stage
        if isinstance(sizes, str) or len(sizes) != 2 or not all(isinstance(n, int) and n > 0 for n in sizes):
            raise UserError(
                f"model.stages holds {stage!r}; use channel counts, [channels, kernel], and 'pool' after a convolution"
            )
        plan.append((sizes[0], sizes[1], False))
    return plan


def _head(widths: list[int], num_classes: int, dropout: float, norm: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Dropout(dropout)] if dropout > 0 else []
        layers += [nn.Linear(inputs, outputs), *norm1d(norm, outputs), nn.ReLU(inplace=True)]
    return [*layers, nn.Linear(widths[-1], num_classes)]
