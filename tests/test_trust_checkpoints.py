"""A checkpoint that would have something called is not loaded, and the line says what it names."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.config.trust import checkpoint_fault
from octo_exp.runs.weights import net_state


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, f"{os.mkdir.__module__}.mkdir"), (Path, r"pathlib\S*.Path"), (torch.hub.load, "torch.hub.load")],
)
@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_checkpoint_that_names_a_function_is_refused_by_that_name(function, name, form, tmp_path):
    file, made = tmp_path / "last.ckpt", tmp_path / "made"
    content = {"state_dict": {"net.weight": Call(function, str(made))}}
    if form == "zip":
        torch.save(content, file)
        assert zipfile.is_zipfile(file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=rf"^init_from: {file} names {name}; it was not run; give another run"):
        net_state(file, "init_from")
    assert not made.exists()


def test_what_is_no_checkpoint_keeps_its_reason(tmp_path):
    (tmp_path / "last.ckpt").write_text("nonsense")
    with pytest.raises(UserError, match=r"last.ckpt is not a whole checkpoint \(.+\); give another run"):
        net_state(tmp_path / "last.ckpt", "ckpt")


def test_the_fault_is_one_line():
    assert checkpoint_fault(ValueError("first\nsecond")) == "is not a readable checkpoint (first)"
    assert checkpoint_fault(KeyError()) == "is not a readable checkpoint (KeyError)"
