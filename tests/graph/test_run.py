"""The command that runs a file: its output, and what it says of a wrong call."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from octo_exp.cli import graph
from octo_exp.cli.entry import main
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.train.graph_net import McuNet
from tests.graph.helpers import MODES, ROOT, SHIPPED, golden, model_file, tiny_model, tiny_resnet


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["octo"])
    write_model(tiny_model(), tmp_path / "m.pkl")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(-128, 128, (5, 3, 16, 16)).astype(np.int8))

    def arguments(**changes: str | None) -> list[str]:
        path = str(changes.pop("model", tmp_path / "m.pkl"))
        options = {"images": tmp_path / "x.npy", "out": tmp_path / "y.npy", "mode": "integer"} | changes
        return ["graph", path, *(f"{key}={value}" for key, value in options.items() if value is not None)]

    return arguments


@pytest.mark.parametrize("mode", MODES)
def test_logits_are_written(call, tmp_path, mode, monkeypatch):
    monkeypatch.setattr(graph, "BATCH", 2)
    assert main(call(mode=mode)) == 0
    logits = np.load(tmp_path / "y.npy")
    net = McuNet.with_classifier(tiny_model(), mode="float_order")
    want = net.classify(torch.from_numpy(np.load(tmp_path / "x.npy")).float())
    assert logits.dtype == np.int8
    assert np.array_equal(logits, want.detach().numpy())


@pytest.mark.parametrize("mode", MODES)
def test_our_own_layout_runs_on_codes(call, tmp_path, mode):
    spec = tiny_resnet()
    write_model(spec, tmp_path / "m.pkl")
    codes = np.random.default_rng(0).integers(-128, 128, (7, 3, 14, 14)).astype(np.int8)
    np.save(tmp_path / "x.npy", codes)
    assert main(call(mode=mode)) == 0
    # The floats that these codes stand for, and the codes of what comes of them.
    net = McuNet.with_classifier(spec, mode="float_order")
    logits = net((torch.from_numpy(codes).float() - spec.input.zero) * spec.input.scale).detach().numpy()
    head = spec.classifier
    written = np.load(tmp_path / "y.npy")
    assert written.dtype == np.int8
    assert np.array_equal(written, np.rint(logits / head.y_scale + head.y_zero))
    assert len(np.unique(written)) > 4


def test_images_of_another_size_are_refused(call, capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 17), np.int8))
    assert main(call()) == 2
    assert "must be [N, 3, 16, 16], got [1, 3, 16, 17]" in capsys.readouterr().err
    assert not (tmp_path / "y.npy").exists()


def test_it_is_a_command(call, tmp_path):
    command = [sys.executable, "-m", "octo_exp", *call()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert np.load(tmp_path / "y.npy").shape == (5, 5)


@pytest.mark.parametrize(
    "changes", [{"mode": "fast"}, {"mode": None}, {"images": None}, {"colour": "red"}], ids=lambda c: str(c)
)
def test_a_wrong_call_is_one_line_and_code_2(call, capsys, changes, tmp_path):
    assert main(call(**changes)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "y.npy").exists()


WRONG_INPUTS = {
    "float": np.zeros((1, 3, 16, 16), np.float32),
    "three dimensions": np.zeros((3, 16, 16), np.int8),
    "four channels": np.zeros((1, 4, 16, 16), np.int8),
    "no image": np.zeros((0, 3, 16, 16), np.int8),
    "objects": np.array([None], object),
}


@pytest.mark.parametrize("images", WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_wrong_images_are_refused_in_one_line(call, capsys, images, tmp_path):
    np.save(tmp_path / "x.npy", images)
    assert main(call()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "x.npy" in error
    assert not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("key", ["model", "images"])
def test_files_that_do_not_serve(call, capsys, key, tmp_path):
    (tmp_path / "bad").write_bytes(b"PK\x03\x04 and no more")
    for path in ("absent", "bad"):
        assert main(call(**{key: str(tmp_path / path)})) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(call(out=str(tmp_path / "none" / "y.npy"))) == 2
    assert sorted(os.listdir(tmp_path)) == ["bad", "m.pkl", "x.npy"]


@pytest.mark.data
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", SHIPPED)
def test_the_released_logits(call, tmp_path, mode, model):
    np.save(tmp_path / "x.npy", golden("inputs")["A_int8"])
    assert main(call(model=str(model_file(model)), mode=mode)) == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), golden(model)["A_logits1000"])
