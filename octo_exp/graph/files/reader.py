"""Read a model file: a zip by torch.save with one pickle, of which exactly four globals are known.

Nothing of the file runs: the four names stand for small classes of this file that only keep what they are given, and
any other name is refused before it is looked up. An array is made from its bytes once its type and shape are checked.
Nothing costs more than a model of the file's length: the zip's directory has a bound, and the pickle is walked (`walk`)
before it is loaded.
"""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from octo_exp.base.errors import UserError
from octo_exp.base.files import expanded
from octo_exp.graph.files.layout import from_dict
from octo_exp.graph.files.pickle_walk import check_pickle
from octo_exp.graph.spec import ModelSpec

DTYPES = ("i1", "i4", "f4")
# Those of a weight.
MAX_DIMENSIONS = 4
# Bytes of a zip's directory; torch.save writes about 70 an entry.
MAX_DIRECTORY = 2**20


class _Latin1:
    """`_codecs.encode` for the one codec that arrays use."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise UserError("its bytes are not in latin1")
        return text.encode("latin1")


class _Dtype:
    """`numpy.dtype`: its code, for little-endian numbers alone."""

    __slots__ = ("code",)

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if code not in DTYPES:
            raise UserError(f"it holds an array of another type than {', '.join(DTYPES)}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|"):
            raise UserError("it holds an array that is not little-endian")


class _Array:
    """`numpy.ndarray`, and what `_reconstruct` makes: shape, type and bytes until somebody asks for the array."""

    __slots__ = ("code", "data", "order", "shape")
    code: str
    data: bytes
    order: Literal["C", "F"]
    shape: tuple[int, ...]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, is_fortran, self.data = state
        if type(dtype) is not _Dtype or type(self.data) is not bytes:
            raise UserError("it holds an array without type or bytes")
        self.code, self.order = dtype.code, "F" if is_fortran else "C"
        # The product of many sizes would be a number of as many digits.
        if type(self.shape) is not tuple or len(self.shape) > MAX_DIMENSIONS:
            raise UserError(f"it holds an array of more than {MAX_DIMENSIONS} dimensions")
        sizes_ok = all(type(n) is int and n >= 0 for n in self.shape)
        if not sizes_ok or math.prod(self.shape) * int(self.code[1]) != len(self.data):
            raise UserError("it holds an array whose bytes do not fill its shape")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        flat = np.frombuffer(self.data, np.dtype(self.code).newbyteorder("<"))
        # A copy, so that nobody holds read-only memory.
        array: np.ndarray = flat.reshape(self.shape, order=self.order).astype(self.code, order="C")
        return array


class _Reconstruct:
    __slots__ = ()

    def __call__(self, kind: type, shape: tuple[int, ...], code: bytes) -> _Array:
        if kind is not _Array:
            raise UserError("it holds an array of another class")
        return _Array()


# Every name that a model file needs; numpy 2 moved the last, files keep the old name.
GLOBALS = {
    ("_codecs", "encode"): _Latin1(),
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise UserError(f"it names {f'{module}.{name}'[:80]!r}, which no model needs; it was not run")
        return GLOBALS[module, name]


class _File(io.BufferedReader):
    """A file that never makes room for more than it has, and refuses to give more than `limit` bytes at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.length, self.limit = path.stat().st_size, MAX_DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes; UserError where they are more than the limit."""
        left = max(0, self.length - self.tell())
        size = left if size is None or size < 0 else min(size, left)
        if size > self.limit:
            raise UserError(f"its zip's directory takes {size} bytes, a model's two entries take some hundred")
        return super().read(size)


def _pickle_bytes(path: Path) -> bytes:
    # zipfile reads the directory first, in one piece, and holds it many times over.
    with _File(path) as file, zipfile.ZipFile(file) as archive:
        entries = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
        if len(entries) != 1:
            raise UserError(f"the zip holds {len(entries)} entries data.pkl, not one")
        # torch.save stores; what is compressed could be of any size.
        if entries[0].compress_type != zipfile.ZIP_STORED:
            raise UserError("its data.pkl is compressed, torch.save stores it")
        file.limit = file.length
        return archive.read(entries[0])


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, zipfile.BadZipFile | EOFError):
        return "not a whole zip file of torch.save: truncated, or of another kind"
    lines = str(error).strip().splitlines()
    return f"its pickle is broken ({type(error).__name__}{': ' + lines[0][:80] if lines else ''})"


def read_model(path: str | Path) -> ModelSpec:
    """A model file -> its spec; UserError in one line where there is none, or anything in it is not as it must be."""
    path = expanded(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the .pkl of a model")
    try:
        data = _pickle_bytes(path)
        check_pickle(data, GLOBALS)
        return from_dict(_Unpickler(io.BytesIO(data)).load())
    except Exception as error:
        raise UserError(f"{path} is not a model: {_reason(error)}; export it again or give another file") from error
