"""The lines of graph.txt: a graph's steps in order of execution, as the writer writes and the reader expects them."""

from collections.abc import Sequence

from octo_exp.graph.integers.fixed import add_factors
from octo_exp.graph.operations import INPUT, Step, steps_of
from octo_exp.graph.spec import ConvSpec, ModelSpec, PoolSpec

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
# A line: its kind, and its values in the order of KEYS.
Row = tuple[str, tuple[Value, ...]]


def files_of(name: str) -> tuple[str, str, str]:
    """Return a convolution's files: weights, biases, scales."""
    return f"{name}.weight.txt", f"{name}.bias.txt", f"{name}_scale_zero.txt"


def pairs(keys: Sequence[str], values: Sequence[Value]) -> str:
    """key=value of each; floats as the shortest decimals that are read as the same float64."""
    texts = (repr(float(value)) if isinstance(value, float) else str(value) for value in values)
    return " ".join(f"{key}={text}" for key, text in zip(keys, texts, strict=True))


def rows_of(spec: ModelSpec) -> list[Row]:
    """Return all lines: format, input, a line a step."""
    image, start = spec.image, spec.input
    opening = (INPUT, image.channels, image.size, start.scale, start.zero)
    return [("format", (VERSION,)), ("input", opening), *map(_row, steps_of(spec))]


def _row(step: Step) -> Row:
    part = step.part
    if isinstance(part, ConvSpec):
        sizes = (part.in_channels, part.out_channels, part.in_size, part.out_size, *part.kernel_size, part.stride)
        return "conv", (step.name, *step.reads, *sizes, *part.padding, part.groups, int(part.depthwise))
    if isinstance(part, PoolSpec):
        window = (part.channels, part.in_size, part.out_size, part.kernel, part.stride, part.padding)
        return f"{part.kind}_pool", (step.name, *step.reads, *window)
    shortcut, body = step.takes
    factors = add_factors(shortcut.scale, body.scale, part.y_scale)
    scales = (body.scale, body.zero, shortcut.scale, shortcut.zero, part.y_scale, part.y_zero)
    integers = (factors.value_2, factors.value_1, factors.shift)
    return "add", (step.name, *reversed(step.reads), part.channels, part.size, *scales, *integers)
