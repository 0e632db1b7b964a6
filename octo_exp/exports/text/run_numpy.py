"""Run a folder of format=text on images: python -m octo_exp.exports.text.run_numpy FOLDER X.npy Y.npy.

X.npy: int8 codes [N, C, S, S]. Y.npy: the codes of the logits, int8 [N, classes], written whole or not at all. It reads
the files by itself, by what the docstring of `text` says, with numpy alone, and computes with integers alone. A wrong
call ends with code 2, what does not serve with 1; either says why in one line.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.base.files import expanded, whole_file

# Images at a time: memory does not grow with their number.
BATCH = 16
# What a file raises that does not hold what it must: words, counts, keys, sizes of 0.
_DAMAGE = (ValueError, KeyError, ZeroDivisionError)


@dataclass(frozen=True, slots=True)
class Step:
    """A line of graph.txt."""

    kind: str
    fields: dict[str, str]

    def __getitem__(self, key: str) -> int:
        """A field that is a whole number."""
        return int(self.fields[key])


@dataclass(frozen=True, slots=True)
class Conv(Step):
    """A convolution, with the numbers of its files."""

    weight: np.ndarray
    offset: np.ndarray
    factors: np.ndarray
    zeros: tuple[int, int]


def load(folder: str | Path) -> list[Step]:
    """A folder -> its steps from the input on; UserError where a file is missing or does not hold what it must."""
    folder = expanded(folder)
    try:
        rows = _rows(folder / "graph.txt")
        steps = [Step(row[0], dict(pair.split("=") for pair in row[1:])) for row in rows]
        if not steps or steps[0].fields != {"version": "1"} or steps[-1].fields.get("name") != "classifier":
            raise ValueError("graph.txt must begin with format version=1 and end with the classifier")
        if steps[1].kind != "input" or min(steps[1]["channels"], steps[1]["size"]) < 1:
            raise ValueError("graph.txt must have an input after its format, of at least one channel and pixel")
        return [_with_numbers(step, folder / "weight") if step.kind == "conv" else step for step in steps[1:]]
    except (OSError, *_DAMAGE) as error:
        raise UserError(f"{folder} is no folder of format=text: {_reason(error)}; export the graph again") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]


def _rows(path: Path) -> list[list[str]]:
    rows = [line.split() for line in path.read_text("ascii").splitlines()[1:]]
    if [] in rows:
        raise ValueError(f"{path}: an empty line")
    return rows


def _integers(path: Path, rows: list[list[str]], shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    numbers = [int(word) for row in rows for word in row]
    if len(numbers) != np.prod(shape):
        raise ValueError(f"{path}: {len(numbers)} numbers, not {' x '.join(map(str, shape))}")
    if min(numbers) < low or max(numbers) > high:
        raise ValueError(f"{path}: a number beyond {low} to {high}")
    return np.array(numbers, np.int64).reshape(shape)


def _with_numbers(step: Step, folder: Path) -> Conv:
    name, outputs, groups = step.fields["name"], step["out_channels"], step["groups"]
    weight, bias, scales = (folder / f"{name}{end}" for end in (".weight.txt", ".bias.txt", "_scale_zero.txt"))
    taps = step["in_channels"] // groups * step["kernel_height"] * step["kernel_width"]
    w = _integers(weight, _rows(weight), (groups, outputs // groups, taps), -128, 127)
    b = _integers(bias, _rows(bias), (outputs,), -(2**31), 2**31 - 1)
    codes, *channels = _rows(scales)
    zeros = dict(pair.split("=") for pair in codes)
    # Of `w_scale value shift` the scale is not looked at.
    value = _integers(scales, [row[1:2] for row in channels], (outputs,), 0, 2**24 - 1)
    shift = _integers(scales, [row[2:] for row in channels], (outputs,), 1, 62)
    x_zero, y_zero = int(zeros["x_zero"]), int(zeros["y_zero"])
    if (128 * abs(w).sum(2)).max() >= 2**31:
        raise ValueError(f"{weight}: sums can leave int32")
    # What stands beside the sums of codes, in int64.
    offset = b - x_zero * w.sum(2).ravel()
    return Conv(step.kind, step.fields, w.astype(np.int32), offset, np.stack([value, shift]), (x_zero, y_zero))


def classify(steps: Sequence[Step], images: np.ndarray) -> np.ndarray:
    """images int8 [N, C, S, S] -> codes of the logits, int8 [N, classes]."""
    start = steps[0]
    if images.dtype != np.int8 or images.shape[1:] != (start["channels"], start["size"], start["size"]):
        wanted = f"int8 codes [N, {start['channels']}, {start['size']}, {start['size']}]"
        raise UserError(f"images must be {wanted}, got {images.dtype} {list(images.shape)}; quantise and resize them")
    try:
        return np.concatenate([_batch(steps, images[k : k + BATCH]) for k in range(0, len(images), BATCH)])
    except _DAMAGE as error:
        raise UserError(f"graph.txt: its steps do not fit ({_reason(error)}); export the graph again") from error


def _batch(steps: Sequence[Step], images: np.ndarray) -> np.ndarray:
    # Channels first, so that a group's sums are one matrix product.
    made = {"input": np.ascontiguousarray(images.transpose(1, 0, 2, 3))}
    for step in steps[1:]:
        keys = ("from", "shortcut") if step.kind == "add" else ("from",)
        sources = [made[step.fields[key]] for key in keys]
        made[step.fields["name"]] = _KINDS[step.kind](step, *sources)
    return np.ascontiguousarray(made["classifier"][:, :, 0, 0].T)


def _windows(x: np.ndarray, kernel: tuple[int, int], stride: int, padding: tuple[int, int], border: int) -> np.ndarray:
    """x [C, N, H, W] -> [C, N, OH, OW, KH, KW], a view."""
    edges = ((0, 0), (0, 0), *((p, p) for p in padding))
    padded = np.pad(x, edges, constant_values=border)
    return np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::stride, ::stride]


def _drop(magnitude: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Whole numbers of at least 0 / 2^shift, halves to even."""
    down = magnitude >> shift
    rest, half = magnitude - (down << shift), np.left_shift(np.int64(1), shift) >> 1
    up = (rest > half) | ((rest == half) & (half > 0) & (down % 2 == 1))
    dropped: np.ndarray = down + up
    return dropped


def _rescaled(product: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """product int64 -> round(its 24 leading bits / 2^shift), halves to even both times."""
    magnitude = np.abs(product)
    excess = np.zeros_like(magnitude)
    # Bits beyond 24, of a number below 2^63.
    for bits in (32, 16, 8, 4, 2, 1):
        excess += np.where(magnitude >> (excess + bits + 23) > 0, bits, 0)
    rescaled: np.ndarray = np.sign(product) * _drop(_drop(magnitude, excess) << excess, shift)
    return rescaled


def _conv(step: Conv, x: np.ndarray) -> np.ndarray:
    kernel, padding = ((step[f"{what}_height"], step[f"{what}_width"]) for what in ("kernel", "padding"))
    windows = _windows(x, kernel, step["stride"], padding, step.zeros[0])
    columns = windows.transpose(0, 4, 5, 1, 2, 3).reshape(*step.weight.shape[::2], -1).astype(np.int32)
    # einsum: numpy's matmul of integers is several times slower.
    sums = np.einsum("gok,gkm->gom", step.weight, columns).reshape(len(step.offset), -1)
    value, shift = step.factors[..., None]
    product = sums + step.offset[:, None]
    product *= value
    codes = (_rescaled(product, shift) + step.zeros[1]).clip(-128, 127).astype(np.int8)
    return codes.reshape(-1, *windows.shape[1:4])


def _max_pool(step: Step, x: np.ndarray) -> np.ndarray:
    largest: np.ndarray = _windows(x, (step["kernel"],) * 2, step["stride"], (step["padding"],) * 2, -128).max((4, 5))
    return largest


def _average_pool(step: Step, x: np.ndarray) -> np.ndarray:
    count = step["kernel"] ** 2
    windows = _windows(x, (step["kernel"],) * 2, step["stride"], (0, 0), 0)
    mean, rest = np.divmod(windows.sum((4, 5), dtype=np.int64), count)
    codes: np.ndarray = (mean + (2 * rest + mean % 2 > count)).astype(np.int8)
    return codes


def _add(step: Step, body: np.ndarray, shortcut: np.ndarray) -> np.ndarray:
    first, second = (
        (codes.astype(np.int64) - step[f"{name}_zero"]) * step[f"{name}_value"]
        for name, codes in (("body", body), ("shortcut", shortcut))
    )
    half = np.left_shift(np.int64(1), step["shift"] - 1)
    code = (first + second + half >> step["shift"]) + step["y_zero"]
    codes: np.ndarray = code.clip(-128, 127).astype(np.int8)
    return codes


_KINDS: dict[str, Callable[..., np.ndarray]] = {
    "conv": _conv,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "add": _add,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see python -m octo_exp.exports.text.run_numpy --help")


def _images(path: str) -> np.ndarray:
    try:
        with expanded(path).open("rb") as file:
            images = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, MemoryError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} is not a readable .npy ({reason[0][:100]}); write it with numpy.save") from error
    if images.ndim != 4 or not len(images):
        raise UserError(f"{path} must be [N, C, S, S] with at least one image, got {list(images.shape)}")
    return images


def _write(path: Path, codes: np.ndarray) -> None:
    with whole_file(path, remedy="give another path") as file:
        np.save(file, codes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = _Parser(prog="python -m octo_exp.exports.text.run_numpy", description="Logits of a folder of format=text.")
    parser.add_argument("folder", help="folder with graph.txt and weight/")
    parser.add_argument("input", help="int8 codes [N, C, S, S], .npy")
    parser.add_argument("output", help="where the logits go, .npy: int8 [N, classes]")
    try:
        options: Any = parser.parse_args(argv)
        _write(expanded(options.output), classify(load(options.folder), _images(options.input)))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
