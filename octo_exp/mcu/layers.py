"""Modules of the graph: a quantised convolution with float masters, and the block of three of them.

Scales and zero points are buffers, so that a state dict is all that a graph needs; they never change in training.
"""

import torch
from torch import Tensor, nn

from octo_exp.mcu import ops
from octo_exp.mcu.constants import ConvConstants
from octo_exp.mcu.spec import BlockSpec, ConvSpec, ResidualSpec
from octo_exp.mcu.update import EVERYTHING, Update


class McuConv2d(nn.Module):
    """A convolution of int8 codes: x [N, C, H, W] -> y [N, O, OH, OW], whole numbers in float32.

    Parameters: `weight` [O, C/G, KH, KW], rounded in the forward pass, and `bias` [O], float masters of int8 and
    int32 values. `update` says what of them is trained. Buffers: x_scale, y_scale [] float64, x_zero, y_zero [] int32,
    w_scales [O] float32, effective_scale [O] = fp32(x_scale * w_scales / y_scale).
    """

    update: Update

    def __init__(self, spec: ConvSpec, *, mode: str, quantize_gradient: bool = False) -> None:
        super().__init__()
        self.mode, self.quantize_gradient, self.update = ops.check_mode(mode), quantize_gradient, EVERYTHING
        self.in_channels, self.out_channels, self.groups = spec.in_channels, spec.out_channels, spec.groups
        self.in_size, self.out_size = (spec.in_size, spec.in_size), (spec.out_size, spec.out_size)
        self.kernel_size, self.geometry = spec.kernel_size, spec.geometry
        self.weight = nn.Parameter(torch.tensor(spec.weight, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(spec.bias, dtype=torch.float32))
        for name in ("x_scale", "y_scale"):
            self.register_buffer(name, torch.tensor(getattr(spec, name), dtype=torch.float64))
        for name in ("x_zero", "y_zero"):
            self.register_buffer(name, torch.tensor(getattr(spec, name), dtype=torch.int32))
        self.register_buffer("w_scales", torch.tensor(spec.w_scales))
        effective = self.x_scale * self.w_scales.double() / self.y_scale
        self.register_buffer("effective_scale", effective.float())

    @property
    def constants(self) -> ConvConstants:
        """Return what the arithmetic needs beside x, weight and bias."""
        zeros = {"x_zero": int(self.x_zero), "y_zero": int(self.y_zero)}
        return ConvConstants(geometry=self.geometry, in_channels=self.in_channels, scale=self.effective_scale, **zeros)

    @property
    def step(self) -> ops.Conv:
        """Return this convolution as a step of a chain."""
        return ops.Conv(weight=self.weight, bias=self.bias, constants=self.constants, update=self.update)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> y [N, O, OH, OW]."""
        return ops.run_chain(x, [self.step], mode=self.mode, quantize_gradient=self.quantize_gradient)

    def extra_repr(self) -> str:
        """Return shapes and arithmetic."""
        return f"{self.in_channels}, {self.out_channels}, kernel={self.kernel_size}, groups={self.groups}, {self.mode}"


class McuResidual(nn.Module):
    """The addition of a block's input and its last output, which has scale `s2` and zero point `z2`."""

    def __init__(self, spec: ResidualSpec, *, s2: float, z2: int) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor([spec.x_scale, s2, spec.y_scale], dtype=torch.float64))
        self.register_buffer("zeros", torch.tensor([spec.x_zero, z2, spec.y_zero], dtype=torch.int32))

    @property
    def step(self) -> ops.Add:
        """Return this addition as a step of a chain."""
        return ops.Add(scales=tuple(self.scales.tolist()), zeros=tuple(self.zeros.tolist()))


class McuBlock(nn.Module):
    """pointwise1 (or none), depthwise, pointwise2, and the addition of the input (or none).

    A block runs as one operation, a net as well, so no hook of what is inside is called.
    """

    def __init__(self, spec: BlockSpec, *, mode: str, quantize_gradient: bool) -> None:
        super().__init__()
        self.options = {"mode": ops.check_mode(mode), "quantize_gradient": quantize_gradient}
        self.convs = nn.ModuleList(McuConv2d(conv, **self.options) for conv in spec.convs)
        last, residual = spec.pointwise2, spec.residual
        self.residual = None if residual is None else McuResidual(residual, s2=last.y_scale, z2=last.y_zero)

    @property
    def steps(self) -> list[ops.Step]:
        """Return the block as steps of a chain."""
        convs: list[ops.Step] = [conv.step for conv in self.convs]
        return convs if self.residual is None else [ops.Branch(), *convs, self.residual.step]

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> y [N, O, OH, OW]."""
        return ops.run_chain(x, self.steps, **self.options)
