"""`init_from=` a run with LAC: kept where this run has it, said where it is lost, refused where nothing trains."""

import copy
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.exports.source import read_run
from octo_exp.exports.subject import graph_of
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.models.build import build_model
from octo_exp.nn.convert import convert
from octo_exp.nn.fold import constant_compensation
from octo_exp.quant.rounding import Clock
from octo_exp.runs.assemble.construct import construct
from octo_exp.runs.assemble.nets import native_net
from octo_exp.runs.run import run
from octo_exp.runs.weights import check_no_compensation, start_from
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
    start_from(net("lac", compensation="affine"), net("lac").state_dict(), where="x")
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


def test_what_would_be_quantised_without_it_is_refused(lac, tmp_path):
    with pytest.raises(UserError) as caught:
        go(tmp_path, "quant=ptq", "train=false", f"init_from={lac}")
    assert str(caught.value) == (
        f"init_from: {lac / 'checkpoints/last.ckpt'} was trained with compensation (LAC), which quant=ptq leaves "
        "out; quantise it with octo export, which folds it into the biases"
    )


def native_of(folder: Path, start: Path, *settings: str) -> McuNet:
    cfg = composed(*TINY, "quant=native", f"init_from={start}", *settings, save_dir=folder)
    datamodule = construct("data", cfg.data)
    datamodule.setup()
    net, _, _ = native_net(cfg, construct("quant", cfg.quant), build_model(cfg.model), datamodule)
    return net


@pytest.mark.parametrize("quant", [("quant=lac",), ("quant=octo",), ("quant=lac", "quant/compensation=affine")])
def test_an_int8_graph_starts_from_the_integers_that_an_export_makes(tmp_path, quant):
    go(tmp_path / "run", *quant, "optim.optimizer.lr=0.05")
    source = read_run(str(tmp_path / "run"))
    layers = [layer for layer in source.net.modules() if getattr(layer, "compensator", None) is not None]
    assert any(constant_compensation(layer).abs().max() > 0 for layer in layers)
    found = native_of(tmp_path, tmp_path / "run").spec
    wanted = graph_of(source, calibration=composed("quant=native").quant.calibration, profile=None).original
    for ours, theirs in zip((*found.convs, found.classifier), (*wanted.convs, wanted.classifier), strict=True):
        assert np.array_equal(ours.weight, theirs.weight)
        assert np.array_equal(ours.bias, theirs.bias)
        assert (ours.x_scale, ours.y_scale, ours.y_zero) == (theirs.x_scale, theirs.y_scale, theirs.y_zero)


def test_a_graph_of_such_a_run_trains(lac, tmp_path):
    rule = ("update=last_k", "update.sparse.n_bias=2", "update.sparse.ratio=0.5", "optim.scheduler=null")
    assert go(tmp_path, "quant=native", *rule, f"init_from={lac}")["steps"] > 0


def test_a_checkpoint_without_its_config_cannot_be_folded(lac, tmp_path):
    shutil.copy(lac / "checkpoints/last.ckpt", tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="its run, which is needed to fold it, is not beside it; give the folder"):
        native_of(tmp_path / "run", tmp_path / "last.ckpt")
    (tmp_path / "config.yaml").write_text("quant: {_target_: os.system, command: exit}")
    with pytest.raises(UserError, match=r"^init_from: .*config.yaml: .*os.system") as caught:
        native_of(tmp_path / "run", tmp_path / "last.ckpt")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.yaml").write_bytes(Path(lac / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"^init_from: .*last\.ckpt .*another model"):
        native_of(tmp_path / "run", tmp_path / "last.ckpt", "model.width=5")


def test_a_checkpoint_of_such_a_run_is_evaluated(lac, tmp_path):
    trained = go(tmp_path / "ptq", "quant=ptq", f"init_from={lac}")
    again = go(tmp_path / "again", "quant=ptq", f"init_from={lac}", "train=false", f"ckpt={tmp_path / 'ptq'}")
    assert again["weights_sha256"] == trained["weights_sha256"]


def test_a_state_without_compensation_passes():
    check_no_compensation(net("int8").state_dict(), where="x", quant="native")
