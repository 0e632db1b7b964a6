"""Write a model file that this project and the original release read: torch.save's zip of plain dicts and arrays."""

import io
import pickle
import zipfile
from pathlib import Path

from octo_exp.base.files import expanded, write_bytes
from octo_exp.graph.files.layout import to_dict
from octo_exp.graph.spec import ModelSpec


def _pickled(spec: ModelSpec) -> bytes:
    data = pickle.dumps(to_dict(spec), protocol=2)
    # numpy 2 moved the function that arrays name; the first array names it, ahead of any array's bytes.
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)


def model_bytes(spec: ModelSpec) -> bytes:
    """Return the file's bytes: two stored entries without dates, so equal specs give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", _pickled(spec)), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return buffer.getvalue()


def write_model(spec: ModelSpec, path: str | Path) -> None:
    """Write the spec's file, whole or not at all (UserError); `read_model` of it gives an identical spec."""
    write_bytes(expanded(path), model_bytes(spec), remedy="give another path")
