"""Files of weights that other programs wrote, as init_from= takes them."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.runs.weights import given
from tests.run_helpers import SMALL, go
from tests.test_weights import net


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state().items()}


def write_safetensors(path: Path) -> Path:
    save_file(state(), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def written(content: object, path: Path, **settings: object) -> Path:
    torch.save(content, path, **settings)
    return path


FILES = {
    "a state dict": lambda path: written(state(), path),
    "safetensors": write_safetensors,
    "the format before torch 1.6": lambda path: written(state(), path, _use_new_zipfile_serialization=False),
    "beside an optimizer": lambda path: written({"model_state_dict": state(), "epoch": 3}, path),
    "another LightningModule's": lambda path: written({"state_dict": prefixed("model."), "loops": {}}, path),
    "DataParallel, compiled": lambda path: written(prefixed("_orig_mod.module."), path),
    "half precision": lambda path: written({name: value.half() for name, value in state().items()}, path),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_weights_of_another_program_are_taken(kind, tmp_path, caplog):
    target = net("lac")
    found = given(str(FILES[kind](tmp_path / "weights.pt")))
    assert found.start(target) == []
    tolerance = 1e-3 if kind == "half precision" else 0
    assert torch.allclose(target[0].weight, state()["0.weight"], atol=tolerance, rtol=0)
    assert torch.allclose(target[2].bias, state()["2.bias"], atol=tolerance, rtol=0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_fits_is_taken_and_the_rest_is_listed(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    target = net("int8", classes=5)
    fresh = target[2].weight.clone()
    found = given(str(written({**state(), "extra": torch.zeros(1)}, tmp_path / "weights.pt")))
    assert found.start(target) == ["2.weight", "2.bias"]
    assert torch.equal(target[0].weight, state()["0.weight"])
    assert torch.equal(target[2].weight, fresh)
    taken, told = [record.getMessage() for record in caplog.records]
    assert taken.endswith("weights.pt: 0.weight, 0.bias")
    assert "2 of 4 tensors" in told
    assert "start anew: 2.weight, 2.bias; not used: 2.weight, 2.bias, extra" in told


def test_a_file_of_which_nothing_fits_is_refused(tmp_path):
    path = written({"conv.weight": torch.zeros(2, 2)}, tmp_path / "weights.pt")
    with pytest.raises(
        UserError, match=r"nothing in .* fits this model: conv\.weight \(2, 2\) there, 0\.weight \(6, 8\)"
    ):
        given(str(path)).start(net("int8"))


class Calls:
    def __reduce__(self):
        return Path.unlink, (Path("kept"),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "holds no network"),
        ({}, "holds no network"),
        ({"a": 1}, "holds no network"),
        ({"state_dict": {"net": 3}}, "holds no network"),
        (Calls(), r"names \S+; it was not run"),
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_what_holds_no_weights_is_refused(content, said, new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").touch()
    path = written(content, tmp_path / "weights.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=said):
        given(str(path))
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_torn_file_is_refused(suffix, tmp_path):
    path = write_safetensors(tmp_path / "w") if suffix == ".safetensors" else written(state(), tmp_path / "w.pt")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"init_from: .*whole"):
        given(str(path))


def test_a_run_starts_from_a_file_and_knows_it_by_its_content(tmp_path):
    again = [*SMALL, "quant=fp32", "data.epochs=1"]
    go(tmp_path / "trained", *SMALL, "quant=fp32")
    # numpy has no bfloat16, in which others write their weights.
    rough = {name: value.bfloat16() for name, value in given(str(tmp_path / "trained")).state.items()}
    assert go(tmp_path / "rough", *again, f"init_from={written(rough, tmp_path / 'rough.pt')}")["test/acc"] >= 0
    run = given(str(tmp_path / "trained"))
    assert run.of_run
    file = written(run.state, tmp_path / "weights.pt")
    ours, theirs = (
        go(tmp_path / f"from-{place.name}", *again, f"init_from={place}") for place in (tmp_path / "trained", file)
    )
    assert theirs["test/acc"] == ours["test/acc"]
    assert theirs["weights_sha256"] == ours["weights_sha256"]
    first = next(iter(run.state))
    written({**run.state, first: run.state[first] * 1.001}, file)
    changed = go(tmp_path / "from-weights.pt", *again, f"init_from={file}")
    assert changed["weights_sha256"] != theirs["weights_sha256"]
