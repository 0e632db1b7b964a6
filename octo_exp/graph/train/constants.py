"""What a quantised convolution needs beside its tensors, and the bits that its gradient needs beside them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octo_exp.kernels.ops import ConvGeometry
from octo_exp.kernels.plain.masks import pack_bits, unpack_bits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvConstants:
    """Geometry, channels of the input, zero points of input and output, scale [O] float32 = fp32(s_x * s_w / s_y)."""

    geometry: ConvGeometry
    in_channels: int
    scale: Tensor
    x_zero: int
    y_zero: int

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved alone, with one filter."""
        return self.geometry.groups == self.in_channels == self.scale.shape[0] > 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """What a convolution's gradients are made from; None says that nobody asks for one.

    bits: where a gradient passes, see `pack`. w: its weight, whole numbers, for grad_x. codes: int8 codes [N, K, H, W]
    of its input's channels `channels` [K] (None: of all), for grad_w.
    """

    constants: ConvConstants
    bits: Tensor
    x_shape: torch.Size
    kernel: tuple[int, int]
    w: Tensor | None
    codes: Tensor | None
    channels: Tensor | None
    wants_bias: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gradients:
    """Of x, of the kept share of w, and of b: None for what was not asked for."""

    x: Tensor | None
    w: Tensor | None
    b: Tensor | None


def pack(inside: Tensor) -> Tensor:
    """Bool of any shape -> uint8 [ceil(numel / 8)], lowest bit first."""
    if inside.device.type == "cpu":
        return torch.from_numpy(np.packbits(inside.numpy().reshape(-1), bitorder="little"))
    return pack_bits(inside.flatten())


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    """The bits of `pack` -> bool of the shape that was packed."""
    if bits.device.type == "cpu":
        flat = np.unpackbits(bits.numpy(), count=shape.numel(), bitorder="little")
        return torch.from_numpy(flat).view(torch.bool).reshape(shape)
    return unpack_bits(bits, shape.numel()).reshape(shape)


def select_channels(t: Tensor, kept: Tensor) -> Tensor:
    """t [N, C, H, W], kept [K] indices -> [N, K, H, W], channels-last in memory."""
    return t.permute(0, 2, 3, 1).index_select(3, kept).permute(0, 3, 1, 2)
