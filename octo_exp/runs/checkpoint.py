"""Checkpoint files: written whole, read only when every byte is as it was written."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.base.files import whole_file
from octo_exp.config.trust import checkpoint_fault

# Under this key a checkpoint says which run it is of: see `octo_exp.config.identity`.
RUN = "octo_exp"


class DamagedError(UserError):
    """A file that is not what was written: torn, or with other bytes than its checksums say."""


def write(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, whole or not at all; UserError where the disk is full or the folder cannot be written."""
    with whole_file(path, remedy="choose another folder with hydra.run.dir=<folder>") as file:
        try:
            torch.save(dict(checkpoint), file)
        except RuntimeError as error:
            # torch's writer reports a failed write as one of its own; what the system said is its cause or context.
            reason = error.__cause__ or error.__context__
            raise reason if isinstance(reason, OSError) else OSError(28, "No space left on device") from error


def read(path: str | Path, key: str) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. UserError as for `load`, and where it holds no network."""
    content = load(path, key)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{key}: {path} holds no network; give a checkpoint written by train.py")
    return content


def load(path: str | Path, key: str, *, old_format: bool = False) -> Any:
    """What torch.save wrote into a file, on the CPU; nothing that it names is run.

    Args:
        path: the file.
        key: the setting that named it, for messages.
        old_format: take a file of torch's format before 1.6 too, which is no zip and has no checksums.

    Raises:
        DamagedError: a checksum of the zip differs, or the file is torn.
        UserError: it is no checkpoint, or names what is not plain data.

    """
    path = Path(path)
    remedy = "give another run or another of its checkpoints"
    try:
        # A torn zip is no zip to zipfile, but begins as one.
        if not old_format or _begins_as_zip(path):
            _check_sums(path, f"{key}: {path}", remedy)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (zipfile.BadZipFile, EOFError) as error:
        fault = _named_by(path) or f"is not a whole checkpoint ({_first_line(error)})"
        raise DamagedError(f"{key}: {path} {fault}; {remedy}") from error
    except Exception as error:
        raise UserError(f"{key}: {path} {checkpoint_fault(error)}; {remedy}") from error


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _check_sums(path: Path, found: str, remedy: str) -> None:
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise DamagedError(f"{found} is damaged: the checksum of {Path(bad).name!r} in it differs; {remedy}")


def _named_by(path: Path) -> str | None:
    """Return what a file without checksums, of torch's old format, would have called; None where it names nothing."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        fault = checkpoint_fault(error)
        return fault if fault.startswith("names ") else None
    return "is of torch's old format, which has no checksums"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def run_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says of its run, empty where it says nothing: a file of another program or version."""
    found = content.get(RUN)
    if not isinstance(found, str):
        return {}
    try:
        told = json.loads(found)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def net_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the net's tensors by their names in the net."""
    return {
        name.removeprefix("net."): value for name, value in content["state_dict"].items() if name.startswith("net.")
    }


def first_non_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, None where all are finite."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


class WholeCheckpointIO(TorchCheckpointIO):
    """What Lightning writes and reads checkpoints with, by this file's `write` and `read`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one. UserError as for `write`."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read one, as plain data. UserError as for `read`."""
        return read(path, "ckpt")
