"""What a microcontroller model is made of, as values: convolutions with int8 weights, pools, blocks, and their scales.

A value stands for round(real / scale) + zero point. Activations are int8, asymmetric, one scale a tensor; weights int8,
symmetric, one scale an output channel; biases int32 at scale x_scale * w_scale. Images, windows and strides are square.
Specs are checked where they are made: UserError in one line says what does not fit. Their fields, in this order, are
those of a file (`files.layout`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from octo_exp.base.errors import UserError

if TYPE_CHECKING:
    from octo_exp.kernels.ops import ConvGeometry

# Below this weight scale a channel computes nothing: QAS would divide by its square.
DEAD_SCALE = 1e-5
POOLS = ("max", "average")
# Codes of activations.
Q_MIN, Q_MAX = -128, 127


def require(condition: bool, message: str) -> None:
    """Raise UserError with the message where the condition does not hold."""
    if not condition:
        raise UserError(message)


def _check_quantization(name: str, scale: float, zero: int) -> None:
    require(isinstance(scale, float) and math.isfinite(scale) and scale > 0, f"{name}_scale must be a float above 0")
    require(type(zero) is int and -128 <= zero <= 127, f"{name}_zero must be an int of -128 to 127")


def _check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    require(isinstance(array, np.ndarray) and array.dtype == dtype, f"{name} must be an array of {np.dtype(dtype)}")
    require(array.shape == shape, f"{name} must be {list(shape)}, got {list(array.shape)}")


def _check_sizes(sizes: Sequence[int], padding: Sequence[int]) -> None:
    require(all(type(n) is int and n >= 1 for n in sizes), "sizes must be ints of at least 1")
    require(all(type(n) is int and n >= 0 for n in padding), "padding must be ints of at least 0")


def _check_out_size(in_size: int, kernel: Sequence[int], stride: int, padding: Sequence[int], out_size: int) -> None:
    sizes = [(in_size + 2 * p - k) // stride + 1 for k, p in zip(kernel, padding, strict=True)]
    require(min(sizes) >= 1, f"input {in_size}x{in_size} is smaller than kernel {tuple(kernel)}")
    fits = sizes == [out_size, out_size]
    require(fits, f"an image of {in_size} gives {sizes[0]}x{sizes[1]}, the file says {out_size}")


class Image(NamedTuple):
    """What passes between layers: channels, side in pixels, scale and zero point of its codes."""

    channels: int
    size: int
    scale: float
    zero: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputSpec:
    """What a float input means: codes = clamp(round(x / scale) + zero, -128, 127).

    Scale 1 and zero 0 say that the input is codes already: what is beyond them is a mistake, and is not clamped.
    """

    scale: float
    zero: int

    def __post_init__(self) -> None:
        """Refuse a scale and a zero point out of range."""
        _check_quantization("input", self.scale, self.zero)

    @property
    def is_codes(self) -> bool:
        """Whether the input is codes already."""
        return self.scale == 1 and self.zero == 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvSpec:
    """A convolution: weight int8 [O, I/groups, KH, KW], bias int32 [O], w_scales float32 [O].

    in_size and out_size are the sides of the square images in pixels; the border of `padding` (rows, columns) holds
    x_zero. `depthwise` is the file's own flag. A linear layer is one whose kernel is the whole image.
    """

    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    stride: int
    groups: int
    depthwise: bool
    kernel_size: tuple[int, int]
    padding: tuple[int, int]
    x_scale: float
    x_zero: int
    y_scale: float
    y_zero: int
    weight: np.ndarray
    bias: np.ndarray
    w_scales: np.ndarray

    def __post_init__(self) -> None:
        """Refuse shapes, types and ranges that contradict another."""
        counts = (self.in_channels, self.out_channels, self.in_size, self.out_size, self.stride, self.groups)
        _check_sizes((*counts, *self.kernel_size), self.padding)
        require(len(self.kernel_size) == len(self.padding) == 2, "kernel_size and padding must be pairs")
        fits = self.in_channels % self.groups == 0 and self.out_channels % self.groups == 0
        require(fits, f"groups={self.groups} must divide {self.in_channels} and {self.out_channels} channels")
        whole = self.groups == self.in_channels == self.out_channels
        require(whole or not self.depthwise, "a depthwise convolution has as many groups as channels, in and out")
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        _check_array("weight", self.weight, np.int8, shape)
        _check_array("bias", self.bias, np.int32, shape[:1])
        _check_array("w_scales", self.w_scales, np.float32, shape[:1])
        require(bool((np.isfinite(self.w_scales) & (self.w_scales > 0)).all()), "w_scales must be above 0")
        _check_quantization("x", self.x_scale, self.x_zero)
        _check_quantization("y", self.y_scale, self.y_zero)
        _check_out_size(self.in_size, self.kernel_size, self.stride, self.padding, self.out_size)

    @property
    def geometry(self) -> "ConvGeometry":
        """Return stride, padding and groups."""
        # It imports torch, which whoever reads a file may not need.
        from octo_exp.kernels.ops import ConvGeometry

        return ConvGeometry(stride=(self.stride, self.stride), padding=self.padding, groups=self.groups)

    @property
    def takes(self) -> Image:
        """Return the image that it reads."""
        return Image(self.in_channels, self.in_size, self.x_scale, self.x_zero)

    @property
    def gives(self) -> Image:
        """Return the image that it writes."""
        return Image(self.out_channels, self.out_size, self.y_scale, self.y_zero)

    @property
    def macs(self) -> int:
        """Return multiply-adds for one image."""
        return self.weight.size * self.out_size**2

    @property
    def params(self) -> int:
        """Return the number of weights and biases."""
        return self.weight.size + self.bias.size

    @property
    def dead_channels(self) -> tuple[int, ...]:
        """Return output channels whose weight scale is below DEAD_SCALE."""
        return tuple(np.flatnonzero(self.w_scales < DEAD_SCALE).tolist())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolSpec:
    """A pool of windows of kernel x kernel codes; scale and zero point pass unchanged.

    max: a border of `padding` never wins. average: the mean, rounded half to even; without padding.
    """

    kind: str
    channels: int
    in_size: int
    out_size: int
    kernel: int
    stride: int
    padding: int

    def __post_init__(self) -> None:
        """Refuse sizes that contradict another, and windows that could lie on the border alone."""
        require(self.kind in POOLS, f"a pool's kind must be one of {', '.join(POOLS)}")
        _check_sizes((self.channels, self.in_size, self.out_size, self.kernel, self.stride), (self.padding,))
        require(self.padding == 0 or self.kind == "max", "an average pool has no padding")
        require(2 * self.padding <= self.kernel, "a pool's padding must be at most half its kernel")
        _check_out_size(self.in_size, (self.kernel,) * 2, self.stride, (self.padding,) * 2, self.out_size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidualSpec:
    """An addition: what the shortcut gives (x_scale, x_zero) and what the body gives make (y_scale, y_zero)."""

    channels: int
    size: int
    x_scale: float
    x_zero: int
    y_scale: float
    y_zero: int

    def __post_init__(self) -> None:
        """Refuse scales and zero points out of range."""
        _check_quantization("x", self.x_scale, self.x_zero)
        _check_quantization("y", self.y_scale, self.y_zero)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockSpec:
    """Body and shortcut, both of the block's input, and their addition (or none, and then no shortcut).

    An empty shortcut is the block's input itself. An inverted bottleneck's body is pointwise (or none), depthwise,
    pointwise.
    """

    body: tuple[ConvSpec, ...]
    shortcut: tuple[ConvSpec, ...]
    residual: ResidualSpec | None

    def __post_init__(self) -> None:
        """Refuse an empty body, and a shortcut that leads nowhere."""
        require(len(self.body) > 0, "a block needs a convolution in its body")
        require(not self.shortcut or self.residual is not None, "a shortcut needs an addition")

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Return the convolutions in order of execution: body, shortcut."""
        return (*self.body, *self.shortcut)
