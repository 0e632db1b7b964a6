"""`init_from=` a run with LAC: kept where this run has it, said where it is lost, refused where nothing trains."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from octo_exp.errors import UserError
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from octo_exp.run import run
from octo_exp.weights import check_no_compensation, start_from
from tests.configs import composed
from tests.nn.helpers import scheme

TINY = (
    *("model=simplecnn", "model.width=4", "model.hidden=12", "logger=csv", "callbacks={}"),
    *("data.limit_train=60", "data.limit_test=20", "data.epochs=1"),
)


def net(name: str, *, classes: int = 3, **changes: str) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, classes))
    convert(model, scheme(name, **changes), impl="torch", clock=Clock(), input_shape=(8,))
    return model


def go(folder: Path, *settings: str) -> dict:
    return run(composed(*TINY, *settings, save_dir=folder))


@pytest.fixture(scope="module")
def lac(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lac")
    go(folder, "quant=lac")
    return folder


@pytest.mark.parametrize("name", ["fp32", "int8", "prc"])
def test_a_scheme_without_compensation_says_what_it_leaves_out(name, caplog):
    target = net(name)
    start_from(target, net("lac").state_dict(), where="runs/a")
    (message,) = caplog.messages
    assert message == (
        "init_from: the compensation (LAC) of 2 layers in runs/a is left out, and the weights alone are trained on; "
        "give that run's quant= to keep it"
    )


def test_another_form_of_compensation_is_left_out_as_well(caplog):
    start_from(net("lac", compensation__form="affine"), net("lac").state_dict(), where="x")
    assert "of 2 layers" in caplog.text


@pytest.mark.parametrize("source", ["lac", "int8", "fp32"])
def test_what_keeps_it_or_has_none_says_nothing(source, caplog):
    target = net("lac")
    start_from(target, copy.deepcopy(net(source)).state_dict(), where="x")
    assert caplog.messages == []


@pytest.mark.parametrize(("name", "layers"), [("lac", None), ("int8", 1)])
def test_a_head_for_other_classes_loses_nothing_that_was_wanted(name, layers, caplog):
    start_from(net(name, classes=5), net("lac").state_dict(), where="x")
    assert "the head (2) starts anew" in caplog.messages[0]
    assert [re.search("of (.) layers", message)[1] for message in caplog.messages[1:]] == [str(layers)] * bool(layers)


@pytest.mark.parametrize("name", ["fp32", "int8", "ptq"])
def test_a_run_that_trains_goes_on_with_a_warning(lac, tmp_path, caplog, name):
    go(tmp_path, f"quant={name}", f"init_from={lac}", "optim.optimizer.lr=0.0")
    assert len([message for message in caplog.messages if "compensation (LAC)" in message]) == 1
    theirs, ours = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (lac, tmp_path)
    )
    for key in ("net.features.0.weight", "net.classifier.0.weight"):
        assert torch.equal(theirs[key], ours[key])


@pytest.mark.parametrize("settings", [("ptq", "train=false"), ("native", "train=false"), ("native", "update=last_k")])
def test_what_would_be_quantised_without_it_is_refused(lac, tmp_path, settings):
    name, *rest = settings
    with pytest.raises(UserError) as caught:
        go(tmp_path, f"quant={name}", *rest, f"init_from={lac}")
    assert str(caught.value) == (
        f"init_from: {lac / 'checkpoints/last.ckpt'} was trained with compensation (LAC), which quant={name} leaves "
        "out; quantise it with python -m octo_exp.export, which folds it into the biases"
    )


def test_a_checkpoint_of_such_a_run_is_evaluated(lac, tmp_path):
    trained = go(tmp_path / "ptq", "quant=ptq", f"init_from={lac}")
    again = go(tmp_path / "again", "quant=ptq", f"init_from={lac}", "train=false", f"ckpt={tmp_path / 'ptq'}")
    assert again["weights_sha256"] == trained["weights_sha256"]


def test_a_state_without_compensation_passes():
    check_no_compensation(net("int8").state_dict(), where="x", quant="native")
