"""A plan and the quantisation of its tensors -> the int8 graph.

Weights are symmetric: s_w = max|w| / 127, one an output channel or one a layer; biases are int32 at scale s_x * s_w.
A pool passes scale and zero point on.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate.plan import Block, Conv, Layer, Plan
from octo_exp.graph.calibrate.scales import Quantization
from octo_exp.graph.spec import DEAD_SCALE, BlockSpec, ConvSpec, InputSpec, ModelSpec, PoolSpec, ResidualSpec

# Half of int32: the other half is for the sum of products that the bias is added to.
BIAS_LIMIT = 2**30


def build_spec(plan: Plan, tensors: Mapping[str, Quantization], *, weights_per_channel: bool) -> ModelSpec:
    """Plan and the quantisation of `plan.tensors` -> the graph."""
    builder = _Builder(tensors, weights_per_channel=weights_per_channel)
    x = tensors[plan.node]
    start, layers = InputSpec(scale=x.scale, zero=x.zero), []
    for layer in plan.layers:
        spec, x = builder.layer(layer, x)
        layers.append(spec)
    return ModelSpec(input=start, layers=tuple(layers), classifier=builder.conv(plan.classifier, x))


class _Builder:
    def __init__(self, tensors: Mapping[str, Quantization], *, weights_per_channel: bool) -> None:
        self.tensors, self.weights_per_channel = tensors, weights_per_channel

    def layer(self, layer: Layer, x: Quantization) -> tuple[ConvSpec | PoolSpec | BlockSpec, Quantization]:
        """(the layer as a spec, the quantisation of what it makes), from the quantisation of what reaches it."""
        if isinstance(layer, Conv):
            return self.conv(layer, x), self.tensors[layer.node]
        if isinstance(layer, Block):
            return self.block(layer, x), self.tensors[layer.node]
        return layer, x

    def conv(self, conv: Conv, x: Quantization) -> ConvSpec:
        """Return a convolution as a spec."""
        y = self.tensors[conv.node]
        if not (conv.weight.isfinite().all() and conv.bias.isfinite().all()):
            raise UserError(f"{conv.name}: weights that are not finite cannot become int8; train the network again")
        scales = weight_scales(conv.weight, conv.bias, x.scale, per_channel=self.weights_per_channel)
        codes = (conv.weight / scales.double().reshape(-1, 1, 1, 1)).round().clamp(-127, 127)
        bias = (conv.bias / (scales.double() * x.scale)).round()
        return ConvSpec(
            in_channels=conv.in_channels,
            out_channels=conv.channels,
            in_size=conv.in_size,
            out_size=conv.out_size,
            kernel_size=(conv.weight.shape[2], conv.weight.shape[3]),
            stride=conv.stride,
            padding=conv.padding,
            groups=conv.groups,
            depthwise=conv.groups == conv.in_channels == conv.channels > 1,
            weight=codes.numpy().astype(np.int8),
            bias=bias.numpy().astype(np.int32),
            x_scale=x.scale,
            x_zero=x.zero,
            y_scale=y.scale,
            y_zero=y.zero,
            w_scales=scales.numpy(),
        )

    def block(self, block: Block, x: Quantization) -> BlockSpec:
        """Return a block as a spec."""
        body, _ = self.chain(block.body, x)
        shortcut, x1 = self.chain(block.shortcut, x)
        y = self.tensors[block.node]
        residual = ResidualSpec(
            channels=block.channels,
            size=block.out_size,
            x_scale=x1.scale,
            x_zero=x1.zero,
            y_scale=y.scale,
            y_zero=y.zero,
        )
        return BlockSpec(body=body, shortcut=shortcut, residual=residual)

    def chain(self, convs: tuple[Conv, ...], x: Quantization) -> tuple[tuple[ConvSpec, ...], Quantization]:
        """(convolutions one after another, the quantisation of what the last of them makes)."""
        specs = []
        for conv in convs:
            specs.append(self.conv(conv, x))
            x = self.tensors[conv.node]
        return tuple(specs), x


def weight_scales(weight: Tensor, bias: Tensor, x_scale: float, *, per_channel: bool) -> Tensor:
    """weight [O, ...], bias [O] float64 -> scales [O] float32: max|w| / 127, larger where that would not do.

    A channel of zeros takes the layer's scale (1 in a layer of zeros). A scale is at least DEAD_SCALE where the layer
    has a larger one, so that no channel counts as dead for being faint; and no bias is above BIAS_LIMIT, beside which
    such a channel's products vanish.
    """
    peaks = weight.abs().flatten(1).amax(1) / 127
    layer = peaks.max()
    layer = layer if layer > 0 else torch.ones_like(layer)
    scales = torch.where(peaks > 0, peaks, layer) if per_channel else layer.expand(len(peaks))
    scales = scales.clamp(min=float(layer.clamp(max=DEAD_SCALE)))
    least = bias.abs() / (x_scale * BIAS_LIMIT)
    # A layer whose scale is a layer's own raises it as a whole.
    scales = torch.maximum(scales, least if per_channel else least.max().expand(len(least)))
    return scales.float()
