"""Lines of a folder of format=text, and the numbers in them: UserError names file and line."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from octo_exp.base.errors import UserError
from octo_exp.exports.text.grammar import TEXTS, Value

# A sign and ten digits hold every int32.
_INTEGER = re.compile(r"-?[0-9]{1,10}")
_INTEGERS = re.compile(r"-?[0-9]{1,10}(?: -?[0-9]{1,10})*")
_SCALE = re.compile(r"[0-9.e+-]{1,30}")
_REMEDY = "export the graph again"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of data and where it stands; lines count from 1."""

    path: Path
    number: int
    text: str

    def refuse(self, message: str) -> NoReturn:
        """Raise UserError with file and line."""
        raise UserError(f"{self.path}, line {self.number}: {message}; {_REMEDY}")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name file and line in what a spec refuses inside, or where float32 does not hold its scales."""
        try:
            with np.errstate(over="raise", divide="raise", invalid="raise"):
                yield
        except UserError as error:
            self.refuse(str(error))
        except FloatingPointError:
            self.refuse("its scales are beyond float32")

    def integer(self, text: str) -> int:
        """A word -> a whole number."""
        if not _INTEGER.fullmatch(text):
            self.refuse(f"{text[:40]!r} is no whole number")
        return int(text)

    def zero(self, text: str) -> int:
        """A word -> a zero point."""
        zero = self.integer(text)
        if not -128 <= zero <= 127:
            self.refuse(f"a zero point of {zero}, it must be -128 to 127")
        return zero

    def scale(self, text: str) -> float:
        """A word -> a float64 above 0."""
        try:
            scale = float(text) if _SCALE.fullmatch(text) else 0.0
        except ValueError:
            scale = 0.0
        if not 0 < scale < math.inf:
            self.refuse(f"{text[:40]!r} is no scale above 0")
        return scale

    def integers(self, count: int, dtype: type) -> np.ndarray:
        """The whole line -> so many numbers of a type."""
        words = self.text.split(" ")
        if not _INTEGERS.fullmatch(self.text):
            for word in words:
                self.integer(word)
        if len(words) != count:
            self.refuse(f"{len(words)} numbers, the graph needs {count}")
        numbers, limits = [int(word) for word in words], np.iinfo(dtype)
        if min(numbers) < limits.min or max(numbers) > limits.max:
            self.refuse(f"a number beyond {limits.min} to {limits.max}")
        return np.array(numbers, dtype)

    def pairs(self, keys: Sequence[str], words: Sequence[str]) -> dict[str, Value]:
        """Words key=value -> the value of each of `keys`, which must be there in any order, once."""
        values: dict[str, Value] = {}
        for word in words:
            key, _, text = word.partition("=")
            if key not in keys or key in values:
                self.refuse(f"{word[:40]!r} is unknown or there twice; its keys are {', '.join(keys)}")
            values[key] = self._value(key, text)
        if len(values) < len(keys):
            self.refuse(f"{next(key for key in keys if key not in values)}= is missing")
        return {key: values[key] for key in keys}

    def _value(self, key: str, text: str) -> Value:
        if key in TEXTS:
            return text
        if key.endswith("scale"):
            return self.scale(text)
        return self.zero(text) if key.endswith("zero") else self.integer(text)


def lines_of(path: Path, count: int | None = None) -> list[Line]:
    """The data lines of a file, `count` of them if given; its first line is for people."""
    try:
        text = path.read_text("ascii")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a folder that format=text wrote") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not ASCII; {_REMEDY}") from error
    lines = [Line(path, number, text) for number, text in enumerate(text.split("\n"), 1)]
    if not lines[0].text.startswith("#"):
        lines[0].refuse("the first line must start with #")
    if lines[-1].text:
        lines[-1].refuse("the last line has no end: the file is cut off")
    data = lines[1:-1]
    if count is not None and len(data) != count:
        # The first line that is too many, or the last that is there.
        lines[min(count + 1, len(data))].refuse(f"the file holds {len(data)} lines of data, the graph needs {count}")
    return data
