"""A microcontroller model as a value: its layers in order, each fit for what comes before it."""

from collections.abc import Sequence
from dataclasses import dataclass

from octo_exp.graph.parts import (
    DEAD_SCALE,
    BlockSpec,
    ConvSpec,
    Image,
    InputSpec,
    PoolSpec,
    ResidualSpec,
    require,
)

__all__ = [
    "DEAD_SCALE",
    "BlockSpec",
    "ConvSpec",
    "Image",
    "InputSpec",
    "Layer",
    "ModelSpec",
    "PoolSpec",
    "ResidualSpec",
    "convs_of",
]

Layer = ConvSpec | PoolSpec | BlockSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelSpec:
    """Layers one after another, then the classifier: a convolution whose kernel is the whole image."""

    input: InputSpec
    layers: tuple[Layer, ...]
    classifier: ConvSpec

    def __post_init__(self) -> None:
        """Refuse layers that do not fit what comes before them."""
        require(len(self.convs) > 0, "a model needs a convolution before its classifier")
        first = self.convs[0].x_scale
        require(self.input.is_codes or self.input.scale == first, "the first convolution's x_scale is not the input's")
        image = self.image
        for i, layer in enumerate(self.layers):
            image = _through(f"layer {i}", layer, image)
        head = self.classifier
        _reaches("the classifier", head.takes, image)
        whole = head.kernel_size == (head.in_size, head.in_size) and head.padding == (0, 0)
        flat = whole and head.stride == 1 and head.groups == 1
        require(flat, "the classifier must be a convolution of the whole image: no padding, stride 1, one group")

    @property
    def image(self) -> Image:
        """Return the image that the model reads."""
        first = self.layers[0]
        first = first.body[0] if isinstance(first, BlockSpec) else first
        channels = first.channels if isinstance(first, PoolSpec) else first.in_channels
        return Image(channels, first.in_size, self.convs[0].x_scale, self.input.zero)

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Return the backbone's convolutions in order of execution; of a block its body, then its shortcut."""
        return tuple(conv for layer in self.layers for conv in convs_of(layer))

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


def convs_of(layer: Layer) -> tuple[ConvSpec, ...]:
    """Return a layer's convolutions in order of execution."""
    if isinstance(layer, BlockSpec):
        return layer.convs
    return (layer,) if isinstance(layer, ConvSpec) else ()


def _reaches(name: str, wanted: Image, image: Image) -> None:
    require(wanted[:2] == image[:2], f"{name} wants {wanted[:2]} (channels, side), {image[:2]} reaches it")
    require(wanted[2:] == image[2:], f"{name} wants codes of {wanted[2:]} (scale, zero), {image[2:]} reach it")


def _through_convs(name: str, convs: Sequence[ConvSpec], image: Image) -> Image:
    for i, conv in enumerate(convs):
        _reaches(f"{name} {i}", conv.takes, image)
        image = conv.gives
    return image


def _through(name: str, layer: Layer, image: Image) -> Image:
    """The image before a layer -> the image after it."""
    if isinstance(layer, ConvSpec):
        _reaches(name, layer.takes, image)
        return layer.gives
    if isinstance(layer, PoolSpec):
        _reaches(name, image._replace(channels=layer.channels, size=layer.in_size), image)
        return image._replace(size=layer.out_size)
    body = _through_convs(f"{name}: body", layer.body, image)
    add = layer.residual
    if add is None:
        return body
    shortcut = _through_convs(f"{name}: shortcut", layer.shortcut, image)
    wanted = Image(add.channels, add.size, add.x_scale, add.x_zero)
    _reaches(f"{name}: residual", wanted, shortcut)
    require(wanted[:2] == body[:2], f"{name}: residual adds images of different shapes: {wanted[:2]}, {body[:2]}")
    return Image(add.channels, add.size, add.y_scale, add.y_zero)
