"""The memory that an update needs beside the forward pass, to the bit, from shapes alone.

For every convolution that trains its bias: C_out*H_out*W_out clamp bits and 32*C_out of bias. For one that trains the
weights of k input channels also the saved input, 8*H_in*W_in*k, and the weights, 8*C_out*k*kh*kw (depthwise 8*k*kh*kw,
grouped all of them). The head saves its input, 8 bits a value; its weights count nothing, nor do momentum, gradient
buffers, the clamp bits of residual additions, the indices of kept channels and the positions of maxima (one byte an
output of a max pool that a gradient passes through; the paper's models have no pool). This is the measure of the
paper's tables: On-Device Training Under 256KB Memory (NeurIPS 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.graph.train.update.selection import LayerRule

BITS_PER_KB = 8 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """One convolution's share, in bits: what it saves for the backward pass and what is rewritten."""

    clamp_bits: int
    input_bits: int
    bias_bits: int
    weight_bits: int

    @property
    def bits(self) -> int:
        """The sum of the four."""
        return self.clamp_bits + self.input_bits + self.bias_bits + self.weight_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMemory:
    """The account of a network: the head's bits, and one entry a convolution from input to output."""

    head_bits: int
    layers: tuple[LayerMemory, ...]

    @property
    def bits(self) -> int:
        """Everything."""
        return self.head_bits + sum(layer.bits for layer in self.layers)

    @property
    def kb(self) -> float:
        """Everything in units of 1024 bytes."""
        return self.bits / BITS_PER_KB

    @property
    def parameters_kb(self) -> float:
        """Trained weights and biases in units of 1024 bytes; the rest is activations."""
        return sum(layer.bias_bits + layer.weight_bits for layer in self.layers) / BITS_PER_KB


def update_memory(shapes: Sequence[LayerShape], rules: Sequence[LayerRule], *, head_inputs: int) -> UpdateMemory:
    """Return the account of a network's convolutions under `rules`; the head reads `head_inputs` values."""
    layers = tuple(layer_memory(shape, rule) for shape, rule in zip(shapes, rules, strict=True))
    return UpdateMemory(head_bits=8 * head_inputs, layers=layers)


def layer_memory(shape: LayerShape, rule: LayerRule) -> LayerMemory:
    """Return the bits of one convolution."""
    out_height, out_width = shape.out_size
    in_height, in_width = shape.in_size
    return LayerMemory(
        clamp_bits=rule.train_bias * shape.out_channels * out_height * out_width,
        input_bits=8 * in_height * in_width * rule.kept,
        bias_bits=rule.train_bias * 32 * shape.out_channels,
        weight_bits=8 * trained_weights(shape, rule.kept),
    )


def trained_weights(shape: LayerShape, kept: int) -> int:
    """Return how many weights the kept channels have; 0 <= kept <= in_channels."""
    height, width = shape.kernel
    filters = 1 if shape.depthwise else shape.out_channels
    # A grouped convolution keeps all channels or none, each seen by its own group's filters only.
    return filters * kept * height * width // (shape.groups if shape.grouped else 1)
