"""quant=native in a run: graphs of files and of float nets, update rules, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException

from octo_exp.errors import UserError
from octo_exp.mcu.graph import McuNet
from octo_exp.mcu.writer import write_model
from octo_exp.run import run
from tests.configs import composed
from tests.mcu.helpers import model_file, tiny_model

DIGITS = (
    "data=digits",
    "data.limit_train=120",
    "data.limit_test=60",
    "data.epochs=1",
    "logger=csv",
    "hw=[systolic_16x16]",
)
PIXELS = "model.pixels={channels:3,mean:[.5,.5,.5],std:[0.00392156862745098,0.00392156862745098,0.00392156862745098]}"


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> tuple[str, ...]:
    """Settings of a small graph for 16 x 16 images, read from a file."""
    path = tmp_path_factory.mktemp("graph") / "tiny.pkl"
    write_model(tiny_model(), path)
    return (*DIGITS, "model=graph", f"model.path={path}", "model.image_size=16", f"++{PIXELS}", "quant=native")


def go(folder: Path, *settings: str) -> dict:
    return run(composed(*settings, save_dir=folder))


def test_a_graph_trains_under_a_rule_and_says_what_it_needs(graph, tmp_path):
    results = go(tmp_path, *graph, "update=last_k", "update.sparse.n_bias=3")
    assert json.loads((tmp_path / "results.json").read_text())["quant"] == "native"
    assert results["update/optimizer"] == "sgd_scale_nomom"
    assert 0 < results["update/parameters_kb"] < results["update/extra_memory_kb"]
    assert len(results["quantized_layers"]) == len(tiny_model().convs)
    assert results["steps"] > 0
    assert results["cost/systolic_16x16/train_step_cycles"] > 0


def test_only_what_the_rule_names_moves(graph, tmp_path):
    go(tmp_path, *graph, "update=head_only", "update.lr=0.5")
    state = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    before = McuNet(tiny_model(), num_classes=10, head="fp", mode="integer").state_dict()
    backbone = [key for key in before if not key.startswith("head.")]
    assert backbone
    for key in backbone:
        assert torch.equal(state[f"net.{key}"], before[key]), key


def test_a_graph_is_evaluated_as_it_is(graph, tmp_path):
    results = go(tmp_path, *graph, "train=false")
    assert 0 <= results["test/acc"] <= 1
    assert results["steps"] == 0


def test_a_run_goes_on_from_another_graph_run(graph, tmp_path):
    first = go(tmp_path / "first", *graph, "update=full", "update.lr=0.001")
    same = go(tmp_path / "same", *graph, f"init_from={tmp_path / 'first'}", "train=false")
    assert same["test/acc"] == first["test/acc"]
    assert same["weights_sha256"] == first["weights_sha256"]


def test_resume_with_a_ratio_is_bit_identical(graph, tmp_path):
    rule = ("update=last_k", "update.sparse.n_bias=3", "update.sparse.n_weight=3", "update.sparse.ratio=0.5")
    go(tmp_path / "part", *graph, *rule, "update.lr=0.001", "optim.scheduler=null", "trainer.max_epochs=1")
    settings = (*graph, *rule, "update.lr=0.001", "optim.scheduler=null")
    whole = go(tmp_path / "whole", *settings, "trainer.max_epochs=2")
    rest = go(tmp_path / "rest", *settings, "trainer.max_epochs=2", f"ckpt={tmp_path / 'part'}")
    assert rest["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("quant=int8",), "is an int8 graph, which quant=int8 cannot train; use quant=native"),
        (("trainer.precision=bf16-mixed",), "int8 graphs keep fp32 masters; use 32-true"),
        (("model.image_size=32",), "holds a graph for 16; set model.image_size=16"),
        (("model.path=/nowhere.pkl",), "model.path=/nowhere.pkl: no such file; give model.path="),
        (("quant.head=soft",), "head 'soft' is unknown"),
        (("quant.mode=fast",), "mode 'fast' is unknown"),
        (("quant.head=original",), "the file's classifier has 5 classes, not 10"),
        (("update=last_k", "update.sparse.n_bias=99"), "the model has"),
    ],
)
def test_mistakes_are_one_line(graph, tmp_path, settings, words):
    with pytest.raises((UserError, InstantiationException)) as caught:
        go(tmp_path, *graph, *settings)
    # Hydra wraps what a constructor raises; train.py takes it out again.
    error = caught.value if isinstance(caught.value, UserError) else caught.value.__cause__
    assert words in str(error)
    assert "\n" not in str(error)


def test_float_nets_need_trained_weights_and_no_rule_without_a_graph(tmp_path):
    with pytest.raises(UserError, match="quant=native quantises a trained network"):
        go(tmp_path, *DIGITS, "model=simplecnn", "quant=native")
    with pytest.raises(UserError, match="update= chooses what of a microcontroller graph trains"):
        go(tmp_path, *DIGITS, "model=simplecnn", "quant=int8", "update=sgd")


@pytest.mark.parametrize("head", ["auto", "fp", "quantized", "fp_original"])
def test_a_float_net_is_quantised_and_keeps_its_accuracy(tmp_path, head):
    settings = (*DIGITS[:1], "data.limit_train=600", *DIGITS[2:], "model=simplecnn", "model.width=6", "model.hidden=24")
    trained = go(tmp_path / "float", *settings, "quant=fp32", "data.epochs=12", "optim.optimizer.lr=0.01")
    graph = (*settings, "quant=native", f"init_from={tmp_path / 'float'}", f"quant.head={head}")
    evaluated = go(tmp_path / "int8", *graph, "train=false")
    assert trained["test/acc"] > 0.8
    if head in ("auto", "fp_original"):
        # One of 60 images.
        assert abs(evaluated["test/acc"] - trained["test/acc"]) < 0.02
    assert go(tmp_path / "tuned", *graph, "update=qas", "update.lr=0.001")["steps"] > 0


@pytest.mark.data
@pytest.mark.parametrize("model", ["mbv2_w035", "mcunet_5fps", "proxyless_w03"])
def test_released_models_are_options(model, tmp_path):
    names = {"mbv2_w035": "mbv2-w0.35", "mcunet_5fps": "mcunet-5fps", "proxyless_w03": "proxyless-w0.3"}
    path = model_file(names[model])
    small = ("data=digits", "data.limit_train=12", "data.limit_test=10", "data.batch_size=5", "logger=csv")
    results = go(
        tmp_path, *small, f"model={model}", f"model.path={path}", "quant=native", "update=head_only", "data.epochs=1"
    )
    assert results["model"] == "graph_file"
    assert results["update/extra_memory_kb"] < 0.2
