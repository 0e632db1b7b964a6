"""The lines of graph.txt: a graph's steps in order of execution, as the writer writes and the reader expects them."""

from collections.abc import Sequence
from dataclasses import dataclass

from octo_exp.deploy.fixed import add_factors
from octo_exp.mcu.spec import BlockSpec, ConvSpec, Layer, ModelSpec, PoolSpec

VERSION = 1
GRAPH, WEIGHTS = "graph.txt", "weight"
# kind -> its keys, in the order in which they are written.
_POOL = ("name", "from", "channels", "in_size", "out_size", "kernel", "stride", "padding")
KEYS: dict[str, tuple[str, ...]] = {
    "format": ("version",),
    "input": ("name", "channels", "size", "scale", "zero"),
    "conv": (
        *("name", "from", "in_channels", "out_channels", "in_size", "out_size", "kernel_height", "kernel_width"),
        *("stride", "padding_height", "padding_width", "groups", "depthwise"),
    ),
    "max_pool": _POOL,
    "average_pool": _POOL,
    "add": (
        *("name", "from", "shortcut", "channels", "size", "body_scale", "body_zero", "shortcut_scale", "shortcut_zero"),
        *("y_scale", "y_zero", "body_value", "shortcut_value", "shift"),
    ),
}
# The line of a convolution's NAME_scale_zero.txt before its channels.
SCALE_KEYS = ("x_scale", "x_zero", "y_scale", "y_zero")
TEXTS = ("name", "from", "shortcut")

Value = str | int | float


def files_of(name: str) -> tuple[str, str, str]:
    """Return a convolution's files: weights, biases, scales."""
    return f"{name}.weight.txt", f"{name}.bias.txt", f"{name}_scale_zero.txt"


def pairs(keys: Sequence[str], values: Sequence[Value]) -> str:
    """key=value of each; floats as the shortest decimals that are read as the same float64."""
    texts = (repr(float(value)) if isinstance(value, float) else str(value) for value in values)
    return " ".join(f"{key}={text}" for key, text in zip(keys, texts, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """A line of graph.txt: values in the order of KEYS[kind]; conv where the step is one."""

    kind: str
    values: tuple[Value, ...]
    conv: ConvSpec | None = None

    @property
    def name(self) -> str:
        """Return the first value: what later steps call it."""
        return str(self.values[0])

    @property
    def line(self) -> str:
        """Return its line."""
        return f"{self.kind} {pairs(KEYS[self.kind], self.values)}"


def steps_of(spec: ModelSpec) -> list[Step]:
    """Return all lines: format, input, the layers' steps, the classifier."""
    image, start = spec.image, spec.input
    opening = ("input", image.channels, image.size, start.scale, start.zero)
    steps = [Step(kind="format", values=(VERSION,)), Step(kind="input", values=opening)]
    for i, layer in enumerate(spec.layers):
        steps += _layer(f"layer{i}", steps[-1].name, layer)
    return [*steps, _conv("classifier", steps[-1].name, spec.classifier)]


def _layer(name: str, source: str, layer: Layer) -> list[Step]:
    if isinstance(layer, ConvSpec):
        return [_conv(name, source, layer)]
    return [_pool(name, source, layer)] if isinstance(layer, PoolSpec) else _block(name, source, layer)


def _conv(name: str, source: str, conv: ConvSpec) -> Step:
    sizes = (conv.in_channels, conv.out_channels, conv.in_size, conv.out_size, *conv.kernel_size, conv.stride)
    values = (name, source, *sizes, *conv.padding, conv.groups, int(conv.depthwise))
    return Step(kind="conv", values=values, conv=conv)


def _pool(name: str, source: str, pool: PoolSpec) -> Step:
    sizes = (pool.channels, pool.in_size, pool.out_size, pool.kernel, pool.stride, pool.padding)
    return Step(kind=f"{pool.kind}_pool", values=(name, source, *sizes))


def _chain(name: str, source: str, convs: Sequence[ConvSpec]) -> list[Step]:
    sources = [source, *(f"{name}{i}" for i in range(len(convs)))]
    return [_conv(f"{name}{i}", sources[i], conv) for i, conv in enumerate(convs)]


def _block(name: str, source: str, block: BlockSpec) -> list[Step]:
    body = _chain(f"{name}.body", source, block.body)
    shortcut = _chain(f"{name}.shortcut", source, block.shortcut)
    add, last = block.residual, block.body[-1]
    if add is None:
        return body
    factors = add_factors(add.x_scale, last.y_scale, add.y_scale)
    names = (f"{name}.add", body[-1].name, shortcut[-1].name if shortcut else source)
    scales = (last.y_scale, last.y_zero, add.x_scale, add.x_zero, add.y_scale, add.y_zero)
    integers = (factors.value_2, factors.value_1, factors.shift)
    values = (*names, add.channels, add.size, *scales, *integers)
    return [*body, *shortcut, Step(kind="add", values=values)]
