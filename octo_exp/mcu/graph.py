"""A microcontroller model as a network: int8 codes in float32 tensors from first convolution to pooled image."""

from typing import Self

import torch
from torch import Tensor, nn

from octo_exp.errors import UserError
from octo_exp.mcu import ops
from octo_exp.mcu.constants import Q_MAX, Q_MIN
from octo_exp.mcu.heads import build_head
from octo_exp.mcu.layers import McuBlock, McuConv2d
from octo_exp.mcu.spec import ModelSpec


class McuNet(nn.Module):
    """x [N, C, H, W] float32, normalised to codes (pixel / 255 - 0.5) * 255, or codes -> logits [N, classes].

    mode: a name of `ops.MODES`. head: fp (float linear), quantized (int8, random start) or original (the file's own
    classifier). quantize_gradient: gradients of the convolutions pass as int8 codes. `pool` lies before `head`.
    """

    def __init__(
        self, spec: ModelSpec, *, num_classes: int, head: str, mode: str, quantize_gradient: bool = False
    ) -> None:
        super().__init__()
        self.spec, self.mode = spec, ops.check_mode(mode)
        self.options = {"mode": mode, "quantize_gradient": quantize_gradient}
        self.first_conv = McuConv2d(spec.first_conv, **self.options)
        self.blocks = nn.ModuleList(McuBlock(block, **self.options) for block in spec.blocks)
        self.head = build_head(head, spec.classifier, num_classes, **self.options)

    @classmethod
    def with_classifier(cls, spec: ModelSpec, *, mode: str) -> Self:
        """Return the file's whole model, its own classifier included."""
        return cls(spec, num_classes=spec.classifier.out_channels, head="original", mode=mode)

    @property
    def convs(self) -> list[McuConv2d]:
        """Return the quantised convolutions from input to output; an int8 head is the last."""
        return [module for module in self.modules() if isinstance(module, McuConv2d)]

    def features(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> the pooled image [N, C', 1, 1], codes."""
        self._check(x)
        steps = [self.first_conv.step, *(step for block in self.blocks for step in block.steps)]
        return ops.average_pool(ops.run_chain(x, steps, **self.options))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> logits [N, classes]."""
        return self.head(self.features(x)).flatten(1)

    def _check(self, x: Tensor) -> None:
        channels = self.first_conv.in_channels
        if x.dim() != 4 or x.shape[1] != channels:
            raise UserError(f"input must be [N, {channels}, H, W], got {list(x.shape)}")
        low, high = x.aminmax()
        # Half a code more is rounded to the nearest even one.
        if not torch.stack([low >= Q_MIN - 0.5, high < Q_MAX + 0.5]).all():
            raise UserError(
                f"input must be codes of {Q_MIN} to {Q_MAX}, got {low:.4g} to {high:.4g}; "
                "normalise with mean 0.5 and standard deviation 1/255"
            )
