"""What stands on the pooled image: a float linear layer, a random int8 one, or the file's own classifier."""

import numpy as np
import torch
from torch import Tensor, nn

from octo_exp.errors import UserError
from octo_exp.mcu.layers import McuConv2d
from octo_exp.mcu.spec import ConvSpec

HEADS = ("fp", "quantized", "original")


class FloatHead(nn.Module):
    """x [N, C, 1, 1] codes -> linear((x - x_zero) * x_scale), [N, classes], in float32."""

    def __init__(self, spec: ConvSpec, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("x_scale", torch.tensor(spec.x_scale, dtype=torch.float32))
        self.register_buffer("x_zero", torch.tensor(spec.x_zero, dtype=torch.int32))
        self.linear = nn.Linear(spec.in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, 1, 1] -> logits [N, classes]."""
        return self.linear((x.flatten(1) - self.x_zero) * self.x_scale)


def random_classifier(spec: ConvSpec, num_classes: int) -> ConvSpec:
    """A float layer's usual random start, quantised: int8 weights, one scale a class; logits are whole numbers.

    y_scale = 1 and y_zero = 0, so the logits are clamped to [-128, 127].
    """
    layer = nn.Conv2d(spec.in_channels, num_classes, 1)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    scales = (weight.abs().amax((1, 2, 3)) / 127).float()
    codes = (weight / scales.double().reshape(-1, 1, 1, 1)).round().clamp(-127, 127)
    return ConvSpec(
        in_channels=spec.in_channels,
        out_channels=num_classes,
        in_size=1,
        out_size=1,
        kernel_size=(1, 1),
        stride=1,
        groups=1,
        depthwise=False,
        weight=codes.numpy().astype(np.int8),
        bias=(bias / (scales.double() * spec.x_scale)).round().numpy().astype(np.int32),
        x_scale=spec.x_scale,
        x_zero=spec.x_zero,
        y_scale=1.0,
        y_zero=0,
        w_scales=scales.numpy(),
    )


def build_head(
    name: str, spec: ConvSpec, num_classes: int, *, mode: str, quantize_gradient: bool
) -> FloatHead | McuConv2d:
    """A name of HEADS, the file's classifier -> the head; UserError for another name or number of classes."""
    if name not in HEADS:
        raise UserError(f"head {name!r} is unknown; choose one of {', '.join(HEADS)}")
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}")
    if name == "fp":
        return FloatHead(spec, num_classes)
    if name == "original" and num_classes != spec.out_channels:
        raise UserError(f"the file's classifier has {spec.out_channels} classes, not {num_classes}; choose head fp")
    layer = spec if name == "original" else random_classifier(spec, num_classes)
    return McuConv2d(layer, mode=mode, quantize_gradient=quantize_gradient)
