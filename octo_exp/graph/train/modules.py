"""Modules of the graph: a quantised convolution with float masters, a pool, and the block with its addition.

Scales and zero points are buffers, so that a state dict is all that a graph needs; they never change in training.
"""

from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.graph.module_list import ModuleList
from octo_exp.graph.spec import BlockSpec, ConvSpec, Layer, PoolSpec, ResidualSpec
from octo_exp.graph.train import chains
from octo_exp.graph.train.constants import ConvConstants
from octo_exp.graph.train.pool import Pool
from octo_exp.graph.train.trained import EVERYTHING, Update


class McuLayer(nn.Module):
    """A layer of codes, which runs its `steps` as one operation: no hook of what is inside is called.

    mode: an arithmetic of `chains.MODES`. quantize_gradient: see `chains.run_chain`.
    """

    def __init__(self, *, mode: str, quantize_gradient: bool = False) -> None:
        super().__init__()
        self.mode, self.quantize_gradient = chains.check_mode(mode), quantize_gradient

    @property
    def steps(self) -> list[chains.Step]:
        """Return the layer as a chain."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> y [N, O, OH, OW]."""
        return chains.run_chain(x, self.steps, mode=self.mode, quantize_gradient=self.quantize_gradient)


class McuConv2d(McuLayer):
    """A convolution of int8 codes: x [N, C, H, W] -> y [N, O, OH, OW], whole numbers in float32.

    Parameters: `weight` [O, C/G, KH, KW], rounded in the forward pass, and `bias` [O], float masters of int8 and
    int32 values. `update` says what of them is trained. Buffers: x_scale, y_scale [] float64, x_zero, y_zero [] int32,
    w_scales [O] float32, effective_scale [O] = fp32(x_scale * w_scales / y_scale).
    """

    update: Update
    x_scale: Tensor
    y_scale: Tensor
    x_zero: Tensor
    y_zero: Tensor
    w_scales: Tensor
    effective_scale: Tensor

    def __init__(self, spec: ConvSpec, *, mode: str, quantize_gradient: bool = False) -> None:
        super().__init__(mode=mode, quantize_gradient=quantize_gradient)
        self.update = EVERYTHING
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
        # Read where they lie: attributes of a module are looked for in three places, at every step.
        buffers: dict[str, Any] = self._buffers
        return ConvConstants(
            geometry=self.geometry,
            in_channels=self.in_channels,
            scale=buffers["effective_scale"],
            x_zero=int(buffers["x_zero"]),
            y_zero=int(buffers["y_zero"]),
        )

    @property
    def step(self) -> chains.Conv:
        """Return this convolution as a step of a chain."""
        return chains.Conv(weight=self.weight, bias=self.bias, constants=self.constants, update=self.update)

    @property
    def steps(self) -> list[chains.Step]:
        """Return this convolution as a chain."""
        return [self.step]

    def extra_repr(self) -> str:
        """Return shapes and arithmetic."""
        gradients = ", int8 gradients" if self.quantize_gradient else ""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel={self.kernel_size}, groups={self.groups}"
        return f"{sizes}, {self.mode}{gradients}"


class McuPool(McuLayer):
    """A pool of codes: x [N, C, H, W] -> y [N, C, OH, OW]; scale and zero point pass unchanged."""

    def __init__(self, spec: PoolSpec, *, mode: str, quantize_gradient: bool = False) -> None:
        super().__init__(mode=mode, quantize_gradient=quantize_gradient)
        self.step = Pool(kind=spec.kind, kernel=spec.kernel, stride=spec.stride, padding=spec.padding)

    @property
    def steps(self) -> list[chains.Step]:
        """Return the pool as a chain."""
        return [self.step]

    def extra_repr(self) -> str:
        """Return the window."""
        return ", ".join(f"{name}={getattr(self.step, name)}" for name in ("kind", "kernel", "stride", "padding"))


class McuResidual(nn.Module):
    """The addition of what the shortcut gives and what the body gives; that has scale `s2` and zero point `z2`."""

    scales: Tensor
    zeros: Tensor

    def __init__(self, spec: ResidualSpec, *, s2: float, z2: int) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor([spec.x_scale, s2, spec.y_scale], dtype=torch.float64))
        self.register_buffer("zeros", torch.tensor([spec.x_zero, z2, spec.y_zero], dtype=torch.int32))

    @property
    def step(self) -> chains.Add:
        """Return this addition as a step of a chain."""
        return chains.Add(scales=tuple(self.scales.tolist()), zeros=tuple(self.zeros.tolist()))


class McuBlock(McuLayer):
    """Body and shortcut of one input, and their addition (or none, and then no shortcut)."""

    def __init__(self, spec: BlockSpec, *, mode: str, quantize_gradient: bool = False) -> None:
        super().__init__(mode=mode, quantize_gradient=quantize_gradient)
        self.body, self.shortcut = (
            ModuleList(McuConv2d(conv, mode=mode, quantize_gradient=quantize_gradient) for conv in convs)
            for convs in (spec.body, spec.shortcut)
        )
        last, residual = spec.body[-1], spec.residual
        self.residual = None if residual is None else McuResidual(residual, s2=last.y_scale, z2=last.y_zero)

    @property
    def steps(self) -> list[chains.Step]:
        """Return the block as a chain."""
        body: list[chains.Step] = [conv.step for conv in self.body]
        if self.residual is None:
            return body
        shortcut: list[chains.Step] = [conv.step for conv in self.shortcut]
        if shortcut:
            # The second swap puts the shortcut's output first in the addition.
            shortcut = [chains.Swap(), *shortcut, chains.Swap()]
        return [chains.Branch(), *body, *shortcut, self.residual.step]


def build_layer(spec: Layer, *, mode: str, quantize_gradient: bool) -> McuConv2d | McuPool | McuBlock:
    """Return the module of a layer."""
    if isinstance(spec, ConvSpec):
        return McuConv2d(spec, mode=mode, quantize_gradient=quantize_gradient)
    if isinstance(spec, PoolSpec):
        return McuPool(spec, mode=mode, quantize_gradient=quantize_gradient)
    return McuBlock(spec, mode=mode, quantize_gradient=quantize_gradient)
