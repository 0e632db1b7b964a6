"""format=text: a graph as a folder of decimal numbers, the layout that test benches of hardware read.

    graph.txt                        what runs in which order
    weight/NAME.weight.txt           int8 weights of a convolution or linear layer
    weight/NAME.bias.txt             its int32 biases
    weight/NAME_scale_zero.txt       its scales, zero points and integer factors

NAME is layer0, layer1, ... in order of execution; in a block layer1.body0, layer1.body1, ..., then layer1.shortcut0,
..., then layer1.add; classifier is the last. All is ASCII. The first line of a file starts with # and is for people;
every other line is data: numbers and words parted by one space, no empty lines. Numbers are decimal; a scale is the
shortest decimal that is read as the same float64. Only integers are needed to compute; scales say what codes mean,
real = (code - zero) * scale.

Images are codes, int8 [C, H, W], square. Rows and columns count from 0, row -1 is above the first. A line of graph.txt
is a kind of step and key=value in this order; `from` (and `shortcut`) name the steps whose outputs it reads.

    format        version=1
    input         name channels size scale zero
                      pixel x -> code clamp(round(x / scale) + zero), halves to even, x normalised as the manifest
                      says; scale 1 and zero 0: x is a code
    conv          name from in_channels out_channels in_size out_size kernel_height kernel_width stride padding_height
                  padding_width groups depthwise
    max_pool      name from channels in_size out_size kernel stride padding
    average_pool  the same; padding is 0
    add           name from shortcut channels size body_scale body_zero shortcut_scale shortcut_zero y_scale y_zero
                  body_value shortcut_value shift

The output of `classifier` [classes, 1, 1] are the codes of the logits. clamp is to [-128, 127], >> an arithmetic shift
of at least 64 bits, I = in_channels, O = out_channels, G = groups, KH x KW the kernel, S the stride.

NAME.weight.txt: O lines of I/G * KH * KW weights, a line an output channel, the kernel's column fastest, then its row,
then the input channel: `w[o][i][r][c]` is number (i * KH + r) * KW + c of data line o, both counted from 0.
NAME.bias.txt: O lines of one number b[o], at scale x_scale * w_scale[o].
NAME_scale_zero.txt: a line x_scale= x_zero= y_scale= y_zero=, of the codes read and written, then O lines
`w_scale value shift`: value * 2^-shift is x_scale * w_scale / y_scale, computed in float32 from left to right; value is
below 2^24, shift 1 to 62.

conv: output channel o is in group g = o / (O/G) (whole division), and with x = x_zero beyond the image's edges

    sum = b[o] + sum of (x[g * I/G + i][row * S - padding_height + r][column * S - padding_width + c] - x_zero)
                        * w[o][i][r][c]     over i, r, c; fits int32
    y[o][row][column] = clamp(round(round24(sum * value) / 2^shift) + y_zero)

round is to the nearest integer, halves to the even one. round24 keeps the 24 leading bits of a number's size, the rest
is rounded in the same way: of a number of 24 + e bits, e > 0, round(|n| / 2^e) * 2^e with its sign; a shorter one
stays.

A linear layer is a conv whose kernel is the whole image. depthwise is 1 where the graph's own file says so, and changes
nothing.

max_pool: the largest code of rows row * stride - padding to row * stride - padding + kernel - 1, columns likewise, that
lie in the image. average_pool: the mean of such a window's kernel^2 codes, a half to the even integer; scale and zero
point pass through both.

add: with body the output of `from` and shortcut that of `shortcut`, code by code

    y = clamp((((body - body_zero) * body_value + (shortcut - shortcut_zero) * shortcut_value + 2^(shift - 1)) >> shift)
              + y_zero)

value * 2^-shift is a scale over y_scale, rounded; values are below 2^31, shift is 1 to 54, and both share it.

`text_numpy` computes by this text alone: python -m octo_exp.exports.text.run_numpy FOLDER X.npy Y.npy.
"""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octo_exp.base.errors import FailedError
from octo_exp.base.files import expanded
from octo_exp.exports.evidence import Evidence
from octo_exp.exports.subject import Graph
from octo_exp.exports.text import run_numpy
from octo_exp.exports.text.grammar import GRAPH, KEYS, SCALE_KEYS, WEIGHTS, files_of, pairs, rows_of
from octo_exp.exports.text.read import read_text
from octo_exp.graph.integers.fixed import conv_factors
from octo_exp.graph.operations import steps_of
from octo_exp.graph.spec import ConvSpec, ModelSpec

__all__ = ["SUFFIX", "read_text", "verify", "write", "write_text"]

SUFFIX = ""
# Images that the verification computes: as many as take this many multiply-adds, within these bounds.
VERIFY_MACS = 5 * 10**9
MIN_IMAGES, MAX_IMAGES = 10, 1000


def write(graph: Graph, folder: Path, name: str) -> dict[str, Any]:
    """Write the folder `name`."""
    write_text(graph.spec, folder / name)
    return {}


@torch.no_grad()
def verify(graph: Graph, folder: Path, name: str) -> Evidence:
    """Compare what is read back with the graph, and the codes of logits that `text_numpy` gives with the graph's.

    Raises:
        UserError: a folder that holds another graph.

    """
    path = folder / name
    if not _equal(read_text(path), graph.spec):
        raise FailedError(f"{name} does not verify: read back, it is another graph; nothing is kept")
    macs = graph.spec.macs + graph.spec.classifier.macs
    wanted = min(max(VERIFY_MACS // macs, MIN_IMAGES), MAX_IMAGES)
    net, done, equal = run_numpy.load(path), 0, 0
    for x, _ in graph.batches():
        codes = graph.net.codes_of(x[: wanted - done])
        same = run_numpy.classify(net, codes.numpy()) == graph.net.classify(codes).numpy()
        done, equal = done + len(codes), equal + int(same.all(1).sum())
        if done == wanted:
            break
    return Evidence(images=done, equal=equal, by=f"numpy {np.__version__}")


def write_text(spec: ModelSpec, folder: str | Path) -> None:
    """Write the spec's files into `folder`, which is made if it is not there; `read_text` gives an equal spec."""
    folder = expanded(folder)
    (folder / WEIGHTS).mkdir(parents=True, exist_ok=True)
    about = "int8 graph: a step a line, in order of execution; the layout stands in octo_exp/exports/formats/text.py"
    _write(folder / GRAPH, about, [f"{kind} {pairs(KEYS[kind], values)}" for kind, values in rows_of(spec)])
    for step in steps_of(spec):
        if isinstance(step.part, ConvSpec):
            _write_conv(folder / WEIGHTS, step.name, step.part)


def _write_conv(folder: Path, name: str, conv: ConvSpec) -> None:
    weight, bias, scales = (folder / file for file in files_of(name))
    outputs, inputs, height, width = conv.weight.shape
    order = f"{outputs} lines (output channels) of {inputs} x {height} x {width} (input channels of a group, KH, KW)"
    rows = conv.weight.reshape(outputs, -1).tolist()
    _write(weight, f"{name} weight, int8: {order}", [" ".join(map(str, row)) for row in rows])
    about = f"{name} bias, int32: {outputs} lines, at scale x_scale * w_scale"
    _write(bias, about, [str(value) for value in conv.bias.tolist()])
    about = f"{name}: a line of scales and zero points, then {outputs} lines: w_scale value shift"
    first = pairs(SCALE_KEYS, (conv.x_scale, conv.x_zero, conv.y_scale, conv.y_zero))
    _write(scales, about, [first, *_channels(conv)])


def _channels(conv: ConvSpec) -> list[str]:
    factors = conv_factors(conv.x_scale, conv.w_scales, conv.y_scale)
    columns = (conv.w_scales.tolist(), factors.value.tolist(), factors.shift.tolist())
    return [f"{scale!r} {value} {shift}" for scale, value, shift in zip(*columns, strict=True)]


def _write(path: Path, about: str, lines: list[str]) -> None:
    path.write_text("\n".join([f"# {about}", *lines, ""]), "ascii", newline="\n")


def _equal(a: Any, b: Any) -> bool:
    """Whether two specs hold equal values, arrays of one type."""
    if is_dataclass(a):
        return type(a) is type(b) and all(_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)
