"""Read a folder of format=text: every line is checked; see `text` for the layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octo_exp.base.errors import UserError
from octo_exp.base.files import expanded
from octo_exp.exports.text.grammar import GRAPH, KEYS, SCALE_KEYS, VERSION, WEIGHTS, Value, files_of, rows_of
from octo_exp.exports.text.lines import Line, lines_of
from octo_exp.graph.integers.fixed import add_factors, conv_factors
from octo_exp.graph.spec import BlockSpec, ConvSpec, InputSpec, Layer, ModelSpec, PoolSpec, ResidualSpec


def read_text(folder: str | Path) -> ModelSpec:
    """A folder of format=text -> its spec; UserError with file and line where anything is not as it must be."""
    folder = expanded(folder)
    steps = [_read(line) for line in lines_of(folder / GRAPH)]
    spec = _Builder(folder, steps).model()
    # What the spec does not need, names, sources and factors, must be what it gives.
    for step, (_, expected) in zip(steps, rows_of(spec), strict=True):
        for (key, value), wanted in zip(step.values.items(), expected, strict=True):
            if value != wanted:
                step.line.refuse(f"{key}={value} does not fit the other lines, which make it {wanted}")
    known = {file for step in steps if step.kind == "conv" for file in files_of(step.name)}
    for path in sorted((folder / WEIGHTS).glob("*.txt")):
        if path.name not in known:
            raise UserError(f"{path}: no line of {GRAPH} has this file; export the graph again")
    return spec


@dataclass(frozen=True, slots=True)
class _Read:
    """A step as graph.txt has it; values in the order of KEYS."""

    line: Line
    kind: str
    values: dict[str, Value]

    @property
    def name(self) -> str:
        return str(self.values.get("name", self.kind))

    def int_of(self, key: str) -> int:
        return int(self.values[key])

    def pair(self, what: str) -> tuple[int, int]:
        return self.int_of(f"{what}_height"), self.int_of(f"{what}_width")


def _read(line: Line) -> _Read:
    kind, *words = line.text.split(" ")
    if kind not in KEYS:
        line.refuse(f"{kind[:40]!r} is no step; known are {', '.join(KEYS)}")
    return _Read(line, kind, line.pairs(KEYS[kind], words))


class _Builder:
    """Takes the steps of graph.txt one after another."""

    def __init__(self, folder: Path, steps: list[_Read]) -> None:
        self.folder, self.steps, self.at = folder, steps, 0

    @property
    def name(self) -> str | None:
        """The next step's name; None at the end of the file."""
        return self.steps[self.at].name if self.at < len(self.steps) else None

    def take(self, name: str, *kinds: str) -> _Read:
        if self.at == len(self.steps):
            raise UserError(f"{self.folder / GRAPH}: {name} is missing at its end; export the graph again")
        step = self.steps[self.at]
        if step.kind not in kinds or step.name != name:
            step.line.refuse(f"expected {name} ({', '.join(kinds)}), got {step.kind} {step.name[:40]!r}")
        self.at += 1
        return step

    def model(self) -> ModelSpec:
        version = self.take("format", "format")
        if version.values["version"] != VERSION:
            version.line.refuse(f"version {version.values['version']} is unknown, this program reads {VERSION}")
        start = self.take("input", "input")
        layers: list[Layer] = []
        with start.line.named():
            scale = InputSpec(scale=float(start.values["scale"]), zero=int(start.values["zero"]))
        while self.name not in ("classifier", None):
            layers.append(self.layer(f"layer{len(layers)}"))
        last = self.take("classifier", "conv")
        if self.at < len(self.steps):
            self.steps[self.at].line.refuse("a step after the classifier")
        if not layers:
            last.line.refuse("a graph needs a layer before its classifier")
        classifier = self.conv(last)
        try:
            return ModelSpec(input=scale, layers=tuple(layers), classifier=classifier)
        except UserError as error:
            raise UserError(f"{self.folder / GRAPH}: {error}; export the graph again") from error

    def layer(self, name: str) -> Layer:
        if self.name != f"{name}.body0":
            step = self.take(name, "conv", "max_pool", "average_pool")
            return self.conv(step) if step.kind == "conv" else _pool(step)
        body, shortcut = self.chain(f"{name}.body"), self.chain(f"{name}.shortcut")
        add = f"{name}.add"
        summed = shortcut or self.name == add
        residual = _residual(self.take(add, "add"), body[-1]) if summed else None
        return BlockSpec(body=body, shortcut=shortcut, residual=residual)

    def chain(self, prefix: str) -> tuple[ConvSpec, ...]:
        convs: list[ConvSpec] = []
        while self.name == f"{prefix}{len(convs)}":
            convs.append(self.conv(self.take(self.name, "conv")))
        return tuple(convs)

    def conv(self, step: _Read) -> ConvSpec:
        return _conv(step, *(self.folder / WEIGHTS / file for file in files_of(step.name)))


def _conv(step: _Read, weight: Path, bias: Path, scales: Path) -> ConvSpec:
    inputs, outputs, groups = (step.int_of(key) for key in ("in_channels", "out_channels", "groups"))
    kernel = step.pair("kernel")
    if min(inputs, outputs, groups, *kernel) < 1 or inputs % groups:
        step.line.refuse("sizes must be at least 1, and groups must divide the channels")
    shape = (outputs, inputs // groups, *kernel)
    weights = [line.integers(shape[1] * kernel[0] * kernel[1], np.int8) for line in lines_of(weight, outputs)]
    biases = [line.integers(1, np.int32) for line in lines_of(bias, outputs)]
    first, *channels = lines_of(scales, outputs + 1)
    codes: dict[str, Any] = first.pairs(SCALE_KEYS, first.text.split(" "))
    w_scales, factors = _channels(channels)
    with step.line.named():
        spec = ConvSpec(
            in_channels=inputs,
            out_channels=outputs,
            kernel_size=kernel,
            padding=step.pair("padding"),
            groups=groups,
            depthwise=bool(step.values["depthwise"]),
            weight=np.stack(weights).reshape(shape),
            bias=np.concatenate(biases),
            w_scales=w_scales,
            in_size=step.int_of("in_size"),
            out_size=step.int_of("out_size"),
            stride=step.int_of("stride"),
            **codes,
        )
    with first.named():
        expected = np.stack(conv_factors(spec.x_scale, w_scales, spec.y_scale), 1).tolist()
    for line, given, wanted in zip(channels, factors, expected, strict=True):
        if given != wanted:
            line.refuse(f"value and shift are {given[0]} {given[1]}, the scales give {wanted[0]} {wanted[1]}")
    return spec


def _channels(lines: list[Line]) -> tuple[np.ndarray, list[list[int]]]:
    """Lines `w_scale value shift` -> scales float32 [O], and of each line [value, shift]."""
    scales, factors = [], []
    for line in lines:
        words = line.text.split(" ")
        if len(words) != 3:
            line.refuse(f"{len(words)} numbers, a channel has 3: w_scale value shift")
        scale = line.scale(words[0])
        with line.named():
            # As float64s: beside a float32 Python's float would be rounded to one.
            if float(np.float32(scale)) != scale:
                line.refuse(f"w_scale {words[0]} is no float32")
        scales.append(scale)
        factors.append([line.integer(word) for word in words[1:]])
    return np.array(scales, np.float32), factors


def _pool(step: _Read) -> PoolSpec:
    sizes = ("channels", "in_size", "out_size", "kernel", "stride", "padding")
    with step.line.named():
        return PoolSpec(kind=step.kind.removesuffix("_pool"), **{key: step.int_of(key) for key in sizes})


def _residual(step: _Read, body: ConvSpec) -> ResidualSpec:
    with step.line.named():
        add = ResidualSpec(
            x_scale=float(step.values["shortcut_scale"]),
            x_zero=int(step.values["shortcut_zero"]),
            y_scale=float(step.values["y_scale"]),
            **{key: int(step.values[key]) for key in ("channels", "size", "y_zero")},
        )
        # Refused here, with the line, where the scales have no factors.
        add_factors(add.x_scale, body.y_scale, add.y_scale)
    return add
