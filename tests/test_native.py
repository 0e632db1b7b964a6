"""quant=native in a run: graphs of files and of float nets, update rules, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException

from octo_exp.base.errors import UserError
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.heads import random_classifier
from octo_exp.runs.run import run
from octo_exp.runs.weights import start_from
from tests.configs import composed
from tests.graph.helpers import model_file, tiny_model

DIGITS = (
    "data=digits",
    "data.limit_train=120",
    "data.limit_test=60",
    "data.epochs=1",
    "logger=csv",
    "hw=[]",
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
    results = go(tmp_path, *graph, "hw=[systolic_16x16]", "update=last_k", "update.sparse.n_bias=3")
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


def test_a_graph_is_evaluated_as_it_is(tmp_path):
    write_model(replace(tiny_model(), classifier=random_classifier(tiny_model().classifier, 10)), tmp_path / "ten.pkl")
    graph = ("model=graph", f"model.path={tmp_path / 'ten.pkl'}", "model.image_size=16", f"++{PIXELS}", "quant=native")
    results = go(tmp_path, *DIGITS, *graph, "train=false")
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


def test_a_checkpoint_goes_on_only_with_the_channels_it_trained(graph, tmp_path):
    rule = ("update=last_k", "update.sparse.n_bias=3", "update.sparse.ratio=0.5", "update.lr=0.001")
    go(tmp_path / "part", *graph, *rule)
    for other in ("update.sparse.criteria=magnitude-", "update.sparse.n_bias=2", "update.sparse.ratio=1"):
        with pytest.raises(UserError, match=r"cannot be gone on from: update\.sparse"):
            go(tmp_path / "rest", *graph, *rule, other, "data.epochs=2", f"ckpt={tmp_path / 'part'}")
    # Tested is what is there, whatever trained.
    go(tmp_path / "test", *graph, "train=false", f"ckpt={tmp_path / 'part'}")


@pytest.mark.parametrize("head", ["quantized", "fp"])
def test_heads_of_other_runs(graph, tmp_path, head):
    head, other = (f"quant.head={head}", f"quant.head={'fp' if head == 'quantized' else 'quantized'}")
    first = go(tmp_path / "first", *graph, head, "update=full", "update.lr=0.001")
    start = f"init_from={tmp_path / 'first'}"
    assert go(tmp_path / "same", *graph, head, start, "train=false")["weights_sha256"] == first["weights_sha256"]
    with pytest.raises(UserError, match=r"has a head of another kind; set quant\.head="):
        go(tmp_path / "other", *graph, other, start)


@pytest.mark.parametrize("head", ["quantized", "fp"])
def test_a_head_for_other_classes_starts_anew(graph, head):
    torch.manual_seed(0)
    source, target = (McuNet(tiny_model(), num_classes=n, head=head, mode="integer") for n in (7, 10))
    with torch.no_grad():
        source.convs[0].weight += 1
    before = {k: v.clone() for k, v in target.state_dict().items()}
    fresh = start_from(target, source.state_dict(), where="x")
    assert set(fresh) == {key for key in before if key.startswith("head.")}
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if key in fresh else source.state_dict()[key]), key


@pytest.mark.slow
def test_resume_of_a_quantised_net_needs_its_start(tmp_path):
    small = (*DIGITS, "model=simplecnn", "model.width=4", "model.hidden=12")
    go(tmp_path / "float", *small, "quant=fp32")
    rule = ("quant=native", "update=last_k", "update.sparse.n_bias=2", "update.sparse.ratio=0.5", "update.lr=0.001")
    start = f"init_from={tmp_path / 'float'}"
    rule = (*rule, "optim.scheduler=null")
    part = go(tmp_path / "part", *small, *rule, start, "trainer.max_epochs=1")
    whole = go(tmp_path / "whole", *small, *rule, start, "trainer.max_epochs=2")
    ckpt = f"ckpt={tmp_path / 'part'}"
    rest = go(tmp_path / "rest", *small, *rule, start, ckpt, "trainer.max_epochs=2")
    assert rest["weights_sha256"] == whole["weights_sha256"] != part["weights_sha256"]
    with pytest.raises(UserError, match="give the init_from= of the run that goes on"):
        go(tmp_path / "lost", *small, *rule, ckpt, "trainer.max_epochs=2")
    assert go(tmp_path / "test", *small, *rule, ckpt, "train=false")["test/acc"] == part["test/acc"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("quant=int8",), "is an int8 graph, which quant=int8 cannot train; use quant=native"),
        (("trainer.precision=bf16-mixed",), "int8 graphs keep fp32 masters; use 32-true"),
        (("model.image_size=32",), "holds a graph for 16; set model.image_size=16"),
        (("model.path=/nowhere.pkl",), "model.path=/nowhere.pkl: no such file; give model.path="),
        (("quant.head=soft",), "quant.head=soft is unknown; choose one of auto, fp,"),
        (("quant.mode=fast",), "quant.mode=fast is unknown; choose one of float_order, integer"),
        (("kernel=reference",), "int8 graphs have arithmetics of their own; leave kernel= out"),
        (("kernel.guard=true",), "int8 graphs have arithmetics of their own; leave kernel= out"),
        (("model.pixels=null",), "reads pixel codes, and model.pixels does not say which"),
        (("train=false",), "quant.head=fp starts anew; give ckpt= or init_from="),
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
    with pytest.raises(UserError, match=r"^update= .* model=SimpleCNN .*quant=int8 "):
        go(tmp_path, *DIGITS, "model=simplecnn", "quant=int8", "update=sgd")


LEARNT = (*DIGITS, "data.limit_train=600", "model=simplecnn", "model.width=6", "model.hidden=24")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> tuple[Path, dict]:
    """A float net that has learnt its set."""
    folder = tmp_path_factory.mktemp("float")
    return folder, go(folder, *LEARNT, "quant=fp32", "data.epochs=12", "optim.optimizer.lr=0.01")


@pytest.mark.parametrize("head", ["auto", "quantized"])
def test_a_float_net_is_quantised_and_keeps_its_accuracy(learnt, tmp_path, head):
    folder, trained = learnt
    graph = (*LEARNT, "quant=native", f"init_from={folder}", f"quant.head={head}")
    assert trained["test/acc"] > 0.8
    if head == "quantized":
        with pytest.raises(UserError, match="starts anew"):
            go(tmp_path / "int8", *graph, "train=false")
    else:
        # One of 60 images.
        assert abs(go(tmp_path / "int8", *graph, "train=false")["test/acc"] - trained["test/acc"]) < 0.02
    assert go(tmp_path / "tuned", *graph, "update=qas", "update.lr=0.001")["steps"] > 0


@pytest.mark.data
@pytest.mark.parametrize(
    "model", ["mbv2_w035", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mcunet_5fps", "proxyless_w03"))]
)
def test_released_models_are_options(model, tmp_path):
    names = {"mbv2_w035": "mbv2-w0.35", "mcunet_5fps": "mcunet-5fps", "proxyless_w03": "proxyless-w0.3"}
    path = model_file(names[model])
    small = ("data=digits", "data.limit_train=12", "data.limit_test=10", "data.batch_size=5", "logger=csv")
    results = go(
        tmp_path, *small, f"model={model}", f"model.path={path}", "quant=native", "update=head_only", "data.epochs=1"
    )
    assert results["model"] == "graph_file"
    assert results["update/extra_memory_kb"] < 0.2
