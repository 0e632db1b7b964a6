"""Read a model file: a zip by torch.save with one pickle, of which exactly four globals are known.

Nothing of the file runs: the four names stand for small classes of this file that only keep what they are given, and
any other name is refused before it is looked up. An array is made from its bytes once its type and shape are checked.
"""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from octo_exp.base.files import expanded
from octo_exp.errors import UserError
from octo_exp.mcu.layout import from_dict
from octo_exp.mcu.spec import ModelSpec

DTYPES = ("i1", "i4", "f4")


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

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, is_fortran, self.data = state
        if type(dtype) is not _Dtype or type(self.data) is not bytes:
            raise UserError("it holds an array without type or bytes")
        self.code, self.order = dtype.code, "F" if is_fortran else "C"
        sizes_ok = type(self.shape) is tuple and all(type(n) is int and n >= 0 for n in self.shape)
        if not sizes_ok or math.prod(self.shape) * int(self.code[1]) != len(self.data):
            raise UserError("it holds an array whose bytes do not fill its shape")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        flat = np.frombuffer(self.data, np.dtype(self.code).newbyteorder("<"))
        # A copy, so that nobody holds read-only memory.
        return flat.reshape(self.shape, order=self.order).astype(self.code, order="C")


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


def _pickle_bytes(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        entries = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
        if len(entries) != 1:
            raise UserError(f"the zip holds {len(entries)} entries data.pkl, not one")
        # torch.save stores; what is compressed could be of any size.
        if entries[0].compress_type != zipfile.ZIP_STORED:
            raise UserError("its data.pkl is compressed, torch.save stores it")
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
        return from_dict(_Unpickler(io.BytesIO(_pickle_bytes(path))).load())
    except Exception as error:
        raise UserError(f"{path} is not a model: {_reason(error)}; export it again or give another file") from error
