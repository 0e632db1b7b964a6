"""The integer graph's layers in plain torch, any device: what the compiled forms of `cpu` must equal."""

import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.graph.integers import fixed
from octo_exp.graph.integers.contracts import ConvIntegers, PoolIntegers
from octo_exp.graph.integers.fixed import AddFactors
from octo_exp.graph.parts import Q_MIN
from octo_exp.kernels import ops


def conv(codes: Tensor, layer: ConvIntegers) -> Tensor:
    """See `IntegerConv`."""
    impl = ops.resolve_impl("auto", codes.device.type)
    acc = ops.int8_conv2d(codes, layer.weight, layer.geometry, pad_value=layer.x_zero, impl=impl)
    acc = acc + layer.offset.reshape(-1, 1, 1)
    return fixed.requantize(acc, layer.value, layer.shift, layer.y_zero)


def pool(codes: Tensor, layer: PoolIntegers) -> Tensor:
    """See `IntegerPool`."""
    k, s, p = layer.kernel, layer.stride, layer.padding
    windows = F.pad(codes, (p,) * 4, value=Q_MIN).unfold(2, k, s).unfold(3, k, s).flatten(4)
    if layer.kind == "max":
        return windows.amax(4)
    return fixed.average(windows.sum(4, dtype=torch.int32), k * k)


def add(shortcut: Tensor, body: Tensor, factors: AddFactors, zeros: tuple[int, int, int]) -> Tensor:
    """See `IntegerAdd`."""
    return fixed.add(shortcut, body, factors, zeros)
