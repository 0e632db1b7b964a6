"""The door: which backend an implementation is on a kind of device, and that each keeps to the same methods."""

import ast
import inspect
from pathlib import Path

import pytest

from octo_exp.base.errors import UserError
from octo_exp.kernels import ops
from octo_exp.kernels.cpu.backend import Cpu
from octo_exp.kernels.plain.reference import Reference
from tests.test_arrows import PACKAGE, file_of


@pytest.mark.parametrize(
    ("impl", "device_type", "kind"),
    [
        ("reference", "cpu", Reference),
        ("reference", "cuda", Reference),
        ("torch", "cpu", Cpu),
        ("torch", "cuda", ops.Backend),
    ],
)
def test_each_implementation_is_one_object_for_a_kind_of_device(impl, device_type, kind):
    found = ops.backend(impl, device_type)
    assert type(found) is kind
    assert found.device_type == device_type
    assert ops.backend(impl, device_type) is found


def test_an_unknown_implementation_is_refused_by_name():
    with pytest.raises(UserError, match="impl='tritn' is unknown; choose one of reference, torch, triton"):
        ops.backend("tritn", "cpu")


@pytest.mark.parametrize("kind", [Reference, Cpu])
def test_a_backend_has_no_operation_of_its_own_and_takes_what_the_plain_form_takes(kind):
    own = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
    assert own
    for name, method in own.items():
        theirs = inspect.signature(getattr(ops.Backend, name)).parameters
        ours = inspect.signature(method).parameters
        assert dict(list(ours.items())[: len(theirs)]) == dict(theirs), name
        assert all(p.default is None for p in list(ours.values())[len(theirs) :]), name


def imported_at_once(path: Path) -> set[Path]:
    """The files of octo_exp that an import of `path` runs, imports within functions left out."""
    seen, pending = set(), [path]
    while pending:
        file = pending.pop()
        seen.add(file)
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                names = (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
                pending += {found for name in names if (found := file_of(name))} - seen
    return seen


def test_numba_and_triton_are_imported_where_their_backend_is_asked_for():
    files = imported_at_once(PACKAGE / "kernels" / "ops.py")
    assert PACKAGE / "kernels" / "backend.py" in files
    assert not {file.parent.name for file in files} & {"cpu", "triton"}
