"""What a microcontroller model is, as values: convolutions with int8 weights, their scales, and their order.

A value stands for round(real / scale) + zero point. Activations are int8, asymmetric, one scale a tensor; weights int8,
symmetric, one scale an output channel; biases int32 at scale x_scale * w_scale. Images are square. Specs are checked
where they are made: UserError in one line says what does not fit.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from octo_exp.errors import UserError
from octo_exp.kernels.geometry import ConvGeometry

# Below this weight scale a channel computes nothing: QAS would divide by its square.
DEAD_SCALE = 1e-5


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _check_quantization(name: str, scale: float, zero: int) -> None:
    _require(isinstance(scale, float) and math.isfinite(scale) and scale > 0, f"{name}_scale must be a float above 0")
    _require(type(zero) is int and -128 <= zero <= 127, f"{name}_zero must be an int of -128 to 127")


def _check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    _require(isinstance(array, np.ndarray) and array.dtype == dtype, f"{name} must be an array of {np.dtype(dtype)}")
    _require(array.shape == shape, f"{name} must be {list(shape)}, got {list(array.shape)}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvSpec:
    """A convolution: weight int8 [O, I/groups, KH, KW], bias int32 [O], w_scales float32 [O]; padding (k - 1) // 2.

    in_size and out_size are the sides of the square images in pixels; `depthwise` is the file's own flag.
    """

    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    kernel_size: tuple[int, int]
    stride: int
    groups: int
    depthwise: bool
    weight: np.ndarray
    bias: np.ndarray
    x_scale: float
    x_zero: int
    y_scale: float
    y_zero: int
    w_scales: np.ndarray

    def __post_init__(self) -> None:
        """Refuse shapes, types and ranges that contradict another."""
        counts = (self.in_channels, self.out_channels, self.in_size, self.out_size, self.stride, self.groups)
        _require(
            all(type(n) is int and n >= 1 for n in (*counts, *self.kernel_size)), "sizes must be ints of at least 1"
        )
        _require(len(self.kernel_size) == 2, "kernel_size must be a number or a pair")
        fits = self.in_channels % self.groups == 0 and self.out_channels % self.groups == 0
        _require(fits, f"groups={self.groups} must divide {self.in_channels} and {self.out_channels} channels")
        whole = self.groups == self.in_channels == self.out_channels
        _require(whole or not self.depthwise, "a depthwise convolution has as many groups as channels, in and out")
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        _check_array("weight", self.weight, np.int8, shape)
        _check_array("bias", self.bias, np.int32, shape[:1])
        _check_array("w_scales", self.w_scales, np.float32, shape[:1])
        _require(bool((np.isfinite(self.w_scales) & (self.w_scales > 0)).all()), "w_scales must be above 0")
        _check_quantization("x", self.x_scale, self.x_zero)
        _check_quantization("y", self.y_scale, self.y_zero)
        self._check_size()

    def _check_size(self) -> None:
        try:
            size = self.geometry.output_size(self.in_size, self.in_size, self.kernel_size)
        except ValueError as error:
            raise UserError(str(error)) from error
        fits = size == (self.out_size, self.out_size)
        _require(fits, f"an image of {self.in_size} gives {size[0]}x{size[1]}, the file says {self.out_size}")

    @property
    def geometry(self) -> ConvGeometry:
        """Return stride, padding and groups."""
        kh, kw = self.kernel_size
        return ConvGeometry(
            stride=(self.stride, self.stride), padding=((kh - 1) // 2, (kw - 1) // 2), groups=self.groups
        )

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
class ResidualSpec:
    """An addition of a block's input (x_scale, x_zero) to its last output; the sum has (y_scale, y_zero)."""

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
    """An inverted bottleneck: pointwise1 (or none), depthwise, pointwise2, and the addition of its input (or none)."""

    pointwise1: ConvSpec | None
    depthwise: ConvSpec
    pointwise2: ConvSpec
    residual: ResidualSpec | None

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Return the convolutions there are, from input to output."""
        return tuple(c for c in (self.pointwise1, self.depthwise, self.pointwise2) if c is not None)

    def __post_init__(self) -> None:
        """Refuse an addition of images of different shapes."""
        if self.residual is None:
            return
        first, last = self.convs[0], self.convs[-1]
        shapes = {(first.in_channels, first.in_size), (last.out_channels, last.out_size)}
        shapes.add((self.residual.channels, self.residual.size))
        _require(len(shapes) == 1, f"residual adds images of different shapes (channels, side): {sorted(shapes)}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelSpec:
    """first_conv, blocks, average pool, classifier (a 1x1 convolution of the pooled 1x1 image)."""

    first_conv: ConvSpec
    blocks: tuple[BlockSpec, ...]
    classifier: ConvSpec

    def __post_init__(self) -> None:
        """Refuse layers that do not fit what comes before them."""
        convs = self.convs
        for i, (a, b) in enumerate(pairwise(convs)):
            made, wanted = (a.out_channels, a.out_size), (b.in_channels, b.in_size)
            _require(made == wanted, f"conv {i + 1} wants {wanted} (channels, side), conv {i} gives {made}")
        last, head = convs[-1], self.classifier
        fits = head.in_channels == last.out_channels
        _require(
            fits, f"the classifier wants {head.in_channels} channels, conv {len(convs) - 1} gives {last.out_channels}"
        )
        flat = head.kernel_size == (1, 1) and head.stride == 1 and head.groups == 1
        _require(flat, "the classifier must be a 1x1 convolution of stride 1 and one group")

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Return the backbone's convolutions: first_conv, then of each block pointwise1, depthwise, pointwise2."""
        return (self.first_conv, *(conv for block in self.blocks for conv in block.convs))

    @property
    def macs(self) -> int:
        """Return the backbone's multiply-adds for one image."""
        return sum(conv.macs for conv in self.convs)

    @property
    def params(self) -> int:
        """Return the number of the backbone's weights and biases."""
        return sum(conv.params for conv in self.convs)

    @property
    def dead_channels(self) -> int:
        """Return how many output channels of the backbone have a weight scale below DEAD_SCALE."""
        return sum(len(conv.dead_channels) for conv in self.convs)
