"""What stands on the features: a float linear layer or an int8 one, at random or as the file's own classifier."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.graph.parts import DEAD_SCALE
from octo_exp.graph.spec import ConvSpec
from octo_exp.graph.train.modules import McuConv2d

# Float at random, float as the file's classifier, int8 at random, int8 as the file's classifier.
HEADS = ("fp", "fp_original", "quantized", "original")
# Half of int32, so that a bias can grow in training.
_BIAS_LIMIT = 2.0**30


class FloatHead(nn.Module):
    """x [N, C, H, W] codes -> linear((x - x_zero) * x_scale), [N, classes], in float32."""

    x_scale: Tensor
    x_zero: Tensor

    def __init__(self, spec: ConvSpec, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("x_scale", torch.tensor(spec.x_scale, dtype=torch.float64))
        self.register_buffer("x_zero", torch.tensor(spec.x_zero, dtype=torch.int32))
        self.linear = nn.Linear(spec.weight[0].size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> logits [N, classes]."""
        logits: Tensor = self.linear((x.flatten(1) - self.x_zero) * self.x_scale)
        return logits


class IntHead(McuConv2d):
    """An int8 convolution of the whole image; it gives real logits, whose codes are (logit / y_scale) + y_zero."""

    def codes(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] codes -> codes of the logits [N, classes, 1, 1]."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] codes -> logits [N, classes, 1, 1]: (code - y_zero) * y_scale."""
        return (self.codes(x) - self.y_zero) * self.y_scale


@torch.no_grad()
def float_classifier(spec: ConvSpec) -> FloatHead:
    """The file's classifier with its weights and bias as real numbers: its logits before they are rounded to codes."""
    head = FloatHead(spec, spec.out_channels)
    scales = torch.tensor(spec.w_scales, dtype=torch.float64)
    head.linear.weight.copy_(torch.tensor(spec.weight).flatten(1) * scales.unsqueeze(1))
    head.linear.bias.copy_(torch.tensor(spec.bias) * scales * spec.x_scale)
    return head


def quantized_classifier(spec: ConvSpec, weight: Tensor, bias: Tensor, *, y_scale: float) -> ConvSpec:
    """Quantise a float layer, weight [O, F], bias [O], in place of the classifier `spec`; y_zero is 0.

    w_scales = max|w| / 127 of each class, and no less than its bias or an update needs.
    """
    weight, bias = weight.detach().double().cpu(), bias.detach().double().cpu()
    for_bias = bias.abs() / (spec.x_scale * _BIAS_LIMIT)
    scales = torch.maximum(weight.abs().amax(1) / 127, for_bias).clamp(min=DEAD_SCALE).float()
    shape = (len(weight), spec.in_channels, *spec.kernel_size)
    codes = (weight / scales.double().unsqueeze(1)).round().clamp(-127, 127).reshape(shape)
    return replace(
        spec,
        out_channels=len(weight),
        depthwise=False,
        weight=codes.numpy().astype(np.int8),
        bias=(bias / (scales.double() * spec.x_scale)).round().numpy().astype(np.int32),
        y_scale=y_scale,
        y_zero=0,
        w_scales=scales.numpy(),
    )


def random_classifier(spec: ConvSpec, num_classes: int) -> ConvSpec:
    """A float layer's usual random start, quantised; logits are whole numbers of scale 1, clamped to [-128, 127]."""
    layer = nn.Linear(spec.weight[0].size, num_classes)
    return quantized_classifier(spec, layer.weight, layer.bias, y_scale=1.0)


def build_head(
    name: str, spec: ConvSpec, num_classes: int, *, mode: str, quantize_gradient: bool
) -> FloatHead | IntHead:
    """A name of HEADS, the file's classifier -> the head; UserError for another name or number of classes."""
    if name not in HEADS:
        raise UserError(f"head {name!r} is unknown; choose one of {', '.join(HEADS)}")
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}")
    if name.endswith("original") and num_classes != spec.out_channels:
        raise UserError(f"the file's classifier has {spec.out_channels} classes, not {num_classes}; choose head fp")
    if name == "fp":
        return FloatHead(spec, num_classes)
    if name == "fp_original":
        return float_classifier(spec)
    layer = spec if name == "original" else random_classifier(spec, num_classes)
    return IntHead(layer, mode=mode, quantize_gradient=quantize_gradient)
