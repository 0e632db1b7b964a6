"""A checkpoint keeps the speed guard's verdict: evaluated, trained on or exported elsewhere it is the same network."""

from pathlib import Path

import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.exports.source import read_run
from octo_exp.nn.guard import Guard
from octo_exp.nn.layers import QuantLayer
from octo_exp.runs.run import run
from octo_exp.runs.weights import speed_guard_of
from tests.configs import composed

# With LAC an int8 layer has tensors that one in float has not: another verdict is another network.
SETTINGS = (
    *("model=lenet5", "quant=octo", "kernel.guard=true", "logger=csv", "callbacks={}"),
    *("data.limit_train=60", "data.limit_test=20", "data.epochs=1"),
)
LAYERS = ("features.3", "features.6", "classifier.0")


def go(folder: Path, *settings: str) -> dict:
    return run(composed(*SETTINGS, *settings, save_dir=folder))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Make this another machine, on which int8 is the fastest in the layers named, or the whole net in bf16."""

    def become(name: str, *fast: str, whole: str = "guarded") -> None:
        def layer(self, net, name, *rest):
            return {"int8": 1.0 if name in fast else 3.0, "fp32": 2.0}

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        monkeypatch.setattr(Guard, "_time_layer", layer)
        monkeypatch.setattr(Guard, "_time_net", lambda self, *rest: {"guarded": 1.5, whole: 1.0})

    return become


@pytest.mark.slow
def test_another_machine_evaluates_and_trains_on_what_was_trained(machine, tmp_path):
    machine("here", "features.3")
    trained = go(tmp_path / "run")
    assert trained["quantized_layers"] == ["features.3"]
    machine("there", "features.6")
    ckpt = f"ckpt={tmp_path / 'run'}"
    evaluated = go(tmp_path / "test", "train=false", ckpt)
    for key in ("speed_guard", "quantized_layers", "test/acc"):
        assert evaluated[key] == trained[key]
    assert go(tmp_path / "more", "data.epochs=2", ckpt)["quantized_layers"] == ["features.3"]
    # What starts there is that machine's.
    assert go(tmp_path / "new")["quantized_layers"] == ["features.6"]


@pytest.mark.parametrize(("fast", "whole"), [(("features.3",), "guarded"), (LAYERS, "bf16")])
def test_another_machine_exports_what_was_trained(machine, tmp_path, fast, whole):
    machine("here", *fast, whole=whole)
    trained = go(tmp_path / "run")
    machine("there", *LAYERS)
    net = read_run(str(tmp_path / "run")).net
    assert [name for name, part in net.named_modules() if isinstance(part, QuantLayer)] == trained["quantized_layers"]


def test_the_checkpoint_s_verdict_is_that_of_the_results(machine, tmp_path):
    machine("here", *LAYERS)
    trained = go(tmp_path / "run")
    assert speed_guard_of(tmp_path / "run/checkpoints/last.ckpt", "ckpt") == trained["speed_guard"]
    go(tmp_path / "all", "kernel.guard=false")
    assert speed_guard_of(tmp_path / "all/checkpoints/last.ckpt", "ckpt") is None


def test_a_checkpoint_without_a_verdict_is_guarded_here(machine, tmp_path):
    machine("here", "features.3")
    go(tmp_path / "run")
    path = tmp_path / "run/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["speed_guard"]
    torch.save(checkpoint, path)
    assert go(tmp_path / "same", "train=false", f"ckpt={path}")["quantized_layers"] == ["features.3"]
    machine("there", "features.6")
    with pytest.raises(UserError, match=r"^ckpt: .*last\.ckpt was made by another"):
        go(tmp_path / "other", "train=false", f"ckpt={path}")
