"""quant=ptq in a run: trained in float, tested in integers; its graph lies in the run's folder."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from octo_exp.deploy import IntegerNet
from octo_exp.errors import UserError
from octo_exp.mcu.reader import read_model
from octo_exp.posttraining import GRAPH_FILE
from octo_exp.run import run
from tests.configs import composed

DIGITS = (
    "data=digits",
    "data.epochs=6",
    "logger=csv",
    "hw=[systolic_16x16]",
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


def test_another_runs_weights_are_quantised_as_they_are(tmp_path):
    before = go(tmp_path / "float", "quant=fp32")
    after = go(tmp_path / "ptq", "quant=ptq", DIGITS[-1], "train=false", f"init_from={tmp_path / 'float'}")
    assert after["float/test/acc"] == before["test/acc"]
    assert abs(after["test/acc"] - before["test/acc"]) <= 0.02
    assert after["steps"] == 0


@pytest.mark.parametrize("method", ["absmax", "percentile", "mse"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
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
        (("quant.calibration.images=0",), "calibration.images=0: it must be a whole number of at least 1"),
        (("quant.calibration.activations=max",), "activations='max' is unknown; choose one of absmax, percentile, mse"),
        (("update=head_only",), "update= chooses what of a microcontroller graph trains"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        go(tmp_path, "quant=ptq", "data.limit_train=60", "data.limit_test=20", "trainer.max_epochs=1", *settings)
    assert "\n" not in str(caught.value)
