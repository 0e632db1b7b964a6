"""quant=ptq in a run: trained in float, tested in integers; its graph lies in the run's folder."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from octo_exp.base.errors import UserError
from octo_exp.cli.export import export as main
from octo_exp.exports.source import read_run
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.integers import IntegerNet
from octo_exp.nn.layers import QuantLayer
from octo_exp.runs import posttraining
from octo_exp.runs.posttraining import GRAPH_FILE
from octo_exp.runs.run import run
from tests.configs import composed
from tests.refusals import assert_names

DIGITS = (
    "data=digits",
    "data.epochs=6",
    "logger=csv",
    "hw=[]",
    "model=simplecnn",
    "quant.calibration.images=64",
)


def go(folder: Path, *settings: str) -> dict:
    return run(composed(*DIGITS[:-1], *settings, save_dir=folder))


def integer_accuracy(folder: Path) -> float:
    """Test accuracy of the graph in a run's folder, by itself."""
    net = IntegerNet(read_model(folder / GRAPH_FILE))
    data = instantiate(composed(*DIGITS, "quant=ptq").data)
    data.setup()
    right = total = 0
    for batch in data.test_dataloader():
        x, labels = data.on_after_batch_transfer(batch, 0)
        right += int((net(x).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("ptq")
    return folder, go(folder, "quant=ptq", DIGITS[-1])


def test_a_run_is_tested_before_and_after(trained):
    folder, results = trained
    assert results["float/test/acc"] > 0.9
    assert abs(results["test/acc"] - results["float/test/acc"]) <= 0.02
    assert results["test/acc"] == pytest.approx(integer_accuracy(folder))
    assert results["quant"] == "ptq"
    assert results["parameters"] > 10_000
    assert results["train/loss"] > 0


def test_the_checkpoint_is_the_float_net_and_gives_the_same_graph(trained, tmp_path):
    folder, results = trained
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(v.is_floating_point() for k, v in state.items() if k.endswith("weight"))
    again = go(tmp_path, "quant=ptq", DIGITS[-1], "train=false", f"ckpt={folder}")
    assert (tmp_path / GRAPH_FILE).read_bytes() == (folder / GRAPH_FILE).read_bytes()
    for key in ("test/acc", "float/test/acc", "weights_sha256"):
        assert again[key] == results[key]


def test_what_was_quantised_without_training_is_exported(trained, tmp_path, capsys):
    folder = tmp_path / "ptq"
    go(folder, "quant=ptq", DIGITS[-1], "train=false", f"ckpt={trained[0]}", "quant.calibration.symmetric=true")
    assert main(["format=mcu", f"run={folder}"]) == 0
    content = json.loads((folder / "export/ptq.pkl.json").read_text())
    assert (content["graph"], content["logits_identical_to_run"]) == ("ptq", True)
    assert content["graph_sha256"] == hashlib.sha256((folder / GRAPH_FILE).read_bytes()).hexdigest()
    # A run that trains has weights of its own, or none.
    edited(folder, "train", True)
    assert main(["format=mcu", f"run={folder}"]) == 2
    assert "holds no checkpoints/last.ckpt" in capsys.readouterr().err


def test_a_run_stopped_before_its_graph_is_quantised_as_it_says(trained, tmp_path):
    folder, file = tmp_path / "run", tmp_path / "made.pkl"
    shutil.copytree(trained[0], folder)
    (folder / GRAPH_FILE).unlink()
    edited(folder, "quant.calibration.symmetric", True)
    edited(folder, "quant.calibration.images", 9)
    assert main(["format=mcu", f"run={folder}", f"output={file}"]) == 0
    made = json.loads((tmp_path / "made.pkl.json").read_text())
    assert (made["calibration"]["symmetric"], made["calibration"]["images"]) == (True, 9)
    assert {conv.y_zero for conv in read_model(file).convs} <= {-128, 0}


def test_a_checkpoint_of_another_config_is_named_with_its_run(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    edited(folder, "model.hidden", 77)
    assert main(["format=mcu", f"run={folder}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: run={folder}: ")
    assert said.endswith("; give a folder whose config.yaml and checkpoint are of one run\n")


def test_another_runs_weights_are_quantised_as_they_are(tmp_path):
    before = go(tmp_path / "float", "quant=fp32")
    after = go(tmp_path / "ptq", "quant=ptq", DIGITS[-1], "train=false", f"init_from={tmp_path / 'float'}")
    assert after["float/test/acc"] == before["test/acc"]
    assert abs(after["test/acc"] - before["test/acc"]) <= 0.02
    assert after["steps"] == 0


def test_an_export_takes_the_graph_of_its_own_run_alone(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    assert main(["format=mcu", f"run={folder}", f"output={tmp_path / 'own.pkl'}"]) == 0
    own = json.loads((tmp_path / "own.pkl.json").read_text())
    assert (own["graph"], own["calibration"], own["logits_identical_to_run"]) == ("ptq", None, True)
    assert own["graph_sha256"] == hashlib.sha256((folder / GRAPH_FILE).read_bytes()).hexdigest()
    assert main(["format=mcu", f"run={folder}", "calibration.images=9", f"output={tmp_path / 'other.pkl'}"]) == 2
    assert "holds its int8 graph already; leave calibration.* out" in capsys.readouterr().err
    # Another run in the same folder: what lies there is not its graph.
    assert "float/test/acc" not in go(folder, "quant=fp32", "trainer.max_epochs=1", "seed=1")
    assert main(["format=mcu", f"run={folder}", "calibration.images=9", f"output={tmp_path / 'new.pkl'}"]) == 0
    new = json.loads((tmp_path / "new.pkl.json").read_text())
    assert (new["graph"], new["calibration"]["images"]) == ("calibrated", 9)
    assert new["graph_sha256"] is None
    assert new["sha256"] != own["sha256"]


def edited(folder: Path, key: str, value: object) -> None:
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, key, value)
    OmegaConf.save(cfg, folder / "config.yaml")


def test_a_run_of_a_gpu_is_exported_on_a_cpu(tmp_path):
    # Where Triton is interpreted an export would succeed with it, in minutes.
    go(tmp_path, "quant=int8", "trainer.max_epochs=1", "data.limit_train=60", "data.limit_test=20", "callbacks={}")
    edited(tmp_path, "trainer.accelerator", "gpu")
    edited(tmp_path, "kernel.impl", "triton")
    layers = [layer for layer in read_run(str(tmp_path)).net.modules() if isinstance(layer, QuantLayer)]
    assert {layer.op.impl for layer in layers} == {"torch"}


def test_a_config_that_is_none_of_a_run_is_one_line(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    edited(folder, "quant.calibration.images", 0)
    assert main(["format=mcu", f"run={folder}"]) == 2
    assert_names(capsys.readouterr().err, "calibration.images=0: ")
    (folder / "config.yaml").write_text("seed: 0\n")
    assert main(["format=mcu", f"run={folder}"]) == 2
    assert_names(capsys.readouterr().err, "config.yaml has no data; ... run")


def test_a_run_that_fails_leaves_no_graph_of_an_earlier_one(trained, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)

    def failing(*arguments: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(posttraining, "quantized", failing)
    with pytest.raises(RuntimeError):
        go(folder, "quant=ptq", "trainer.max_epochs=1", "seed=1")
    assert not (folder / GRAPH_FILE).exists()


def test_a_run_with_compensation_is_not_quantised_without_it(tmp_path):
    go(tmp_path / "lac", "quant=lac", "trainer.max_epochs=1", "data.limit_train=60", "data.limit_test=20")
    with pytest.raises(UserError, match=r"^init_from: .*last\.ckpt .*compensation .*quant=ptq"):
        go(tmp_path / "ptq", "quant=ptq", "train=false", f"init_from={tmp_path / 'lac'}")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("images=0", "calibration.images=0: ... at least 1"),
        ("activations=max", "activations='max' ... absmax, percentile, mse"),
        ("percentile=0", "percentile=0 must be above 50 and at most 100"),
        ("symmetric=maybe", "calibration.symmetric=maybe: it must be true or false"),
    ],
)
def test_a_wrong_calibration_is_refused_before_the_training(setting, message):
    with pytest.raises(InstantiationException) as caught:
        instantiate(composed(*DIGITS, "quant=ptq", f"quant.calibration.{setting}").quant)
    assert isinstance(caught.value.__cause__, UserError)
    assert_names(caught.value.__cause__, message)


# Every pair of choices; all twelve with -m slow.
PAIRS = {
    *(("absmax", False, False), ("absmax", True, True), ("percentile", False, True)),
    *(("percentile", True, False), ("mse", False, False), ("mse", True, True)),
}
CALIBRATIONS = [
    case if case in PAIRS else pytest.param(*case, marks=pytest.mark.slow)
    for case in itertools.product(("absmax", "percentile", "mse"), (False, True), (False, True))
]


@pytest.mark.parametrize(("method", "symmetric", "per_channel"), CALIBRATIONS)
def test_every_calibration(trained, tmp_path, method, symmetric, per_channel):
    folder, results = trained
    settings = [f"quant.calibration.activations={method}", f"quant.calibration.symmetric={symmetric}"]
    settings += [f"quant.calibration.weights_per_channel={per_channel}", "callbacks={}", DIGITS[-1]]
    found = go(tmp_path, "quant=ptq", "train=false", f"ckpt={folder}", *settings)
    assert abs(found["test/acc"] - results["float/test/acc"]) <= 0.02
    spec = read_model(tmp_path / GRAPH_FILE)
    zeros = {spec.input.zero, *(conv.y_zero for conv in (*spec.convs, spec.classifier))}
    assert (zeros <= {0, -128}) == symmetric
    assert (len(set(spec.convs[0].w_scales.tolist())) > 1) == per_channel


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train=false",), "train=false evaluates a checkpoint: give ckpt="),
        (("update=head_only",), "^update= .* model=SimpleCNN .*quant=ptq "),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        go(tmp_path, "quant=ptq", "data.limit_train=60", "data.limit_test=20", "trainer.max_epochs=1", *settings)
    assert "\n" not in str(caught.value)
