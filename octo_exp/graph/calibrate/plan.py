"""A float network as the int8 graph will run it: convolutions with their norm folded in, pools and additions.

Values only: nothing here knows a scale. A linear layer on [C, S, S] is a convolution of kernel (S, S); an activation is
a pair of bounds, (0, inf) for ReLU and (0, 6) for ReLU6. `node` names the tensor of the traced network that a layer
makes, before those bounds.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from octo_exp.graph.parts import PoolSpec

NO_BOUNDS = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conv:
    """weight [O, I/groups, KH, KW] and bias [O], float64; images of in_size x in_size -> out_size x out_size."""

    name: str
    node: str
    weight: Tensor
    bias: Tensor
    stride: int
    padding: tuple[int, int]
    groups: int
    in_size: int
    out_size: int
    bounds: tuple[float, float] = NO_BOUNDS

    @property
    def in_channels(self) -> int:
        """Return the number of input channels."""
        return self.weight.shape[1] * self.groups

    @property
    def channels(self) -> int:
        """Return the number of output channels."""
        return self.weight.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """body(x) + shortcut(x), within bounds; a shortcut without convolutions is x itself."""

    name: str
    node: str
    body: tuple[Conv, ...]
    shortcut: tuple[Conv, ...]
    channels: int
    out_size: int
    bounds: tuple[float, float] = NO_BOUNDS


Layer = Conv | PoolSpec | Block


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Images [channels, size, size] at tensor `node`, the layers in order, and the one that gives the logits."""

    node: str
    channels: int
    size: int
    layers: tuple[Layer, ...]
    classifier: Conv

    @property
    def tensors(self) -> dict[str, tuple[float, float]]:
        """Return name -> bounds of every tensor that needs a range."""
        found = {self.node: NO_BOUNDS}
        for layer in (*self.layers, self.classifier):
            parts: tuple[Layer, ...] = (*layer.body, *layer.shortcut, layer) if isinstance(layer, Block) else (layer,)
            found |= {part.node: part.bounds for part in parts if not isinstance(part, PoolSpec)}
        return found
