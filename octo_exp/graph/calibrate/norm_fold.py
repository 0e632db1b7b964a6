"""BatchNorm as part of the convolution or linear layer before it, in float64.

y = gamma * (w x + b - mean) / sqrt(var + eps) + beta is a layer of weight w * f and bias (b - mean) * f + beta with
f = gamma / sqrt(var + eps), one number an output channel.
"""

import torch
from torch import Tensor, nn


def weight_and_bias(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """Return (weight, bias) in float64, on the CPU; a layer without bias has zeros."""
    weight = layer.weight.detach().double().cpu()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double().cpu()
    return weight, bias


def norm_factors(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor] | None:
    """(factor, offset) [C] float64: in eval mode the norm is x * factor + offset; None without running statistics."""
    if norm.running_mean is None or norm.running_var is None:
        return None
    mean, var = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
    factor = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double().cpu()
    offset = -mean * factor
    return factor, offset if norm.bias is None else offset + norm.bias.detach().double().cpu()


def fold(weight: Tensor, bias: Tensor, factor: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """weight [O, ...], bias, factor, offset [O] -> weight and bias of the layer and the norm after it."""
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1)), torch.addcmul(offset, bias, factor)
