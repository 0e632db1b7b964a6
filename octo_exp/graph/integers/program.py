"""A whole graph as one compiled call, for a few images.

At batch 1 a call from Python costs as much as a layer: its code and data lie in no cache after megabytes of weights. So
a graph is written down once, as a table of its steps and two arrays of constants, and one loop runs it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from octo_exp.graph.integers.cpu_layers import Conv, room
from octo_exp.graph.integers.fixed import add_factors
from octo_exp.graph.operations import Step, images_of, steps_of
from octo_exp.graph.parts import ConvSpec, PoolSpec
from octo_exp.graph.spec import ModelSpec
from octo_exp.kernels.cpu import few_rows, fixed_loops
from octo_exp.kernels.cpu.compiled import INNER, njit

# Images up to which the calls weigh beside the work.
MAX_IMAGES = 8
# Places are multiples of a cache line: a vector on two lines is read twice.
LINE = 64

CONV, DEPTHWISE, MAX_POOL, AVERAGE_POOL, ADD = range(5)
# Of a step: its kind; the places of its inputs and its output among all codes of an image; a window; zero points; the
# places of its weights and constants; the factors of an addition.
STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("kind", "x", "x_size", "x_channels", "second", "y", "y_size", "y_channels"),
            *("height", "width", "stride", "top", "left", "x_zero", "second_zero", "y_zero"),
            *("weights", "blocks", "words", "constants", "room", "value_1", "value_2", "shift"),
        )
    ]
)


@njit(**INNER)
def _image(memory: np.ndarray, n: int, at: int, size: int, channels: int) -> np.ndarray:
    return memory[n * at : n * (at + size * size * channels)].reshape(n, size, size, channels)


@njit(**INNER)
def run(table: Any, weights: np.ndarray, constants: np.ndarray, memory: np.ndarray, n: int) -> None:
    """Run a table of STEP on n images: each reads its codes in memory [n * codes] int8 and writes there.

    weights uint8; constants int32 [3, ...]: offset, value, shift. A place times n is where n images begin.
    """
    for s in table:
        x = _image(memory, n, s.x, s.x_size, s.x_channels)
        y = _image(memory, n, s.y, s.y_size, s.y_channels)
        part = slice(s.constants, s.constants + s.y_channels)
        offset, value, shift = constants[0, part], constants[1, part], constants[2, part]
        padding = (s.top, s.left)
        if s.kind == CONV:
            shape = (s.blocks, s.words, few_rows.BLOCK, few_rows.WORD)
            w = weights[s.weights : s.weights + s.blocks * s.words * few_rows.BLOCK * few_rows.WORD].reshape(shape)
            window = (s.height, s.width), (s.stride, s.stride), padding
            few_rows.conv(x, w, *window, s.x_zero, offset, value, shift, s.y_zero, memory[n * s.room :], y)
        elif s.kind == DEPTHWISE:
            taps = weights[s.weights : s.weights + s.height * s.width * s.x_channels].view(np.int8)
            taps = taps.reshape(s.height, s.width, s.x_channels)
            fixed_loops.depthwise(x, taps, offset, value, shift, s.x_zero, s.y_zero, s.stride, padding, y)
        elif s.kind == MAX_POOL:
            fixed_loops.max_pool(x, s.height, s.stride, s.top, y)
        elif s.kind == AVERAGE_POOL:
            fixed_loops.average_pool(x, s.height, s.stride, y)
        else:
            other = _image(memory, n, s.second, s.y_size, s.y_channels)
            zeros = (s.x_zero, s.second_zero, s.y_zero)
            flat = x.reshape(n, -1), other.reshape(n, -1)
            fixed_loops.add(*flat, s.value_1, s.value_2, s.shift, zeros, y.reshape(n, -1))


@njit(**INNER)
def run_images(
    x: np.ndarray,
    image: tuple[np.float32, ...],
    table: Any,
    weights: np.ndarray,
    constants: np.ndarray,
    memory: np.ndarray,
    logit_scale: np.float32,
    logit_zero: np.float32,
    logits: np.ndarray,
) -> bool:
    """x [N, C, H, W] float32 -> logits [N, classes] float32; False where a pixel has no code; image: its constants."""
    n, last = x.shape[0], table[-1]
    if not fixed_loops.codes_of_images(x, *image, _image(memory, n, 0, x.shape[2], x.shape[1])):
        return False
    run(table, weights, constants, memory, n)
    codes = _image(memory, n, last.y, 1, last.y_channels)
    for i in range(n):
        for c in range(last.y_channels):
            logits[i, c] = (np.float32(codes[i, 0, 0, c]) - logit_zero) * logit_scale
    return True


class ReadyConv(Protocol):
    """A convolution in integers, and what a CPU runs of it."""

    _buffers: dict[str, Tensor | None]

    @property
    def ready(self) -> Conv: ...  # noqa: D102


class Program:
    """A graph made ready: what `IntegerNet` computes of a few images, `most_images` at most.

    Args:
        spec: the graph.
        convs: its convolutions in order of execution, each a module.
        image: constants of `codes_of_images`.
        logit: scale and zero point of the logits.

    """

    def __init__(
        self,
        spec: ModelSpec,
        convs: Sequence[ReadyConv],
        *,
        image: tuple[np.float32, ...],
        logit: tuple[np.float32, np.float32],
    ) -> None:
        steps, left = steps_of(spec), iter(convs)
        buffers = [(conv._buffers, name, t) for conv in convs for name, t in conv._buffers.items()]
        self._made_of = [(own, name, t, t._version) for own, name, t in buffers if t is not None]
        places, self._codes = {}, 0
        for name, image_made in images_of(spec).items():
            places[name] = self._codes
            self._codes += _lines(image_made.size**2 * image_made.channels)
        columns = max(s.gives.size**2 * s.part.weight[0].size for s in steps if isinstance(s.part, ConvSpec))
        scratch, self._codes = self._codes, self._codes + _lines(columns + few_rows.WORD)
        self.table = np.zeros(len(steps), STEP)
        parts: list[np.ndarray] = []
        constants: list[np.ndarray] = []
        for row, step in zip(self.table, steps, strict=True):
            _put_images(row, step, places)
            row["room"] = scratch
            if isinstance(step.part, ConvSpec):
                conv = next(left).ready
                row["weights"] = sum(part.size for part in parts)
                row["constants"] = sum(part.shape[1] for part in constants)
                parts.append(_put_conv(row, conv))
                constants.append(np.stack(conv.constants))
            elif isinstance(step.part, PoolSpec):
                _put_pool(row, step.part)
            else:
                _put_add(row, step)
        self.weights, self.constants = np.concatenate(parts), np.concatenate(constants, axis=1)
        self._image, self._logit = image, logit

    def is_of_now(self) -> bool:
        """Whether the net's constants are those that were copied: neither moved, loaded nor edited since."""
        return all(buffers[name] is t and t._version == version for buffers, name, t, version in self._made_of)

    def __call__(self, x: np.ndarray) -> np.ndarray | None:
        """x [N, C, H, W] float32 -> logits [N, classes] float32; None where `codes_of_images` denies a number."""
        n = len(x)
        logits = np.empty((n, int(self.table[-1]["y_channels"])), np.float32)
        arrays = self.table, self.weights, self.constants, room.of(np.int8, n, self._codes).reshape(-1)
        whole = run_images(np.ascontiguousarray(x), self._image, *arrays, *self._logit, logits)
        return logits if whole else None


def most_images(steps: Iterable[Step]) -> int:
    """Return up to how many images these steps are faster as a program; 0 where one has no loop here."""
    convs = [part for step in steps if isinstance(part := step.part, ConvSpec)]
    has_loop = (c.groups == 1 or c.groups == c.in_channels == c.out_channels for c in convs)
    if not few_rows.is_available() or not all(has_loop):
        return 0
    largest = max(c.macs for c in convs)
    # For one image calls weigh most, so its largest convolution may be beyond what `few_rows` is best at.
    return min(MAX_IMAGES, few_rows.MAX_MACS // largest) or int(largest <= 2 * few_rows.MAX_MACS)


def _lines(size: int) -> int:
    return -(-size // LINE) * LINE


def _put(row: Any, **fields: int) -> None:
    for name, value in fields.items():
        row[name] = value


def _put_images(row: Any, step: Step, places: dict[str, int]) -> None:
    first, made = step.takes[0], step.gives
    _put(row, x=places[step.reads[0]], x_size=first.size, x_channels=first.channels, second=places[step.reads[-1]])
    _put(row, y=places[step.name], y_size=made.size, y_channels=made.channels)


def _put_conv(row: Any, conv: Conv) -> np.ndarray:
    """Fill a convolution's row; return its weights, as many bytes as whole lines have."""
    (height, width), (top, left) = conv.kernel, conv.geometry.padding
    _put(row, height=height, width=width, stride=conv.geometry.stride[0], top=top, left=left)
    _put(row, x_zero=conv.x_zero, y_zero=conv.y_zero, kind=DEPTHWISE if conv.is_depthwise else CONV)
    if conv.is_depthwise:
        weights = conv.taps.view(np.uint8)
    else:
        weights = few_rows.packed(conv.weights[0])
        _put(row, blocks=weights.shape[0], words=weights.shape[1])
    return np.pad(weights.reshape(-1), (0, _lines(weights.size) - weights.size))


def _put_pool(row: Any, pool: PoolSpec) -> None:
    kind = MAX_POOL if pool.kind == "max" else AVERAGE_POOL
    _put(row, kind=kind, height=pool.kernel, stride=pool.stride, top=pool.padding)


def _put_add(row: Any, step: Step) -> None:
    first, second, made = *step.takes, step.gives
    _put(row, kind=ADD, x_zero=first.zero, second_zero=second.zero, y_zero=made.zero)
    _put(row, **add_factors(first.scale, second.scale, made.scale)._asdict())
