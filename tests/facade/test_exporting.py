"""`export` and `trace` from the door."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import octo_exp
from octo_exp.base.errors import ConfigError, UserError
from octo_exp.exports.evidence import Evidence
from octo_exp.exports.formats import FORMATS, module_of
from octo_exp.graph.spec import ModelSpec
from octo_exp.tracing import optimizer_cost
from octo_exp.tracing import trace as traced
from tests.configs import composed
from tests.facade.test_cost_and_graphs import made
from tests.run_helpers import SMALL, go

IMAGES = torch.rand(12, 1, 12, 12)


@pytest.fixture(scope="module")
def graph() -> ModelSpec:
    return octo_exp.calibrate(made(), [IMAGES])


@pytest.mark.parametrize("name", octo_exp.__all__)
def test_no_room_takes_the_place_of_a_name(name: str, root: Path) -> None:
    """A package of octo_exp becomes its attribute when anybody imports it."""
    places = [root / "octo_exp" / name, root / "octo_exp" / f"{name}.py"]
    assert not any(place.exists() for place in places)
    home, there = octo_exp._HOMES[name]
    assert getattr(octo_exp, name) is getattr(importlib.import_module(home), there)


def test_a_trace_is_that_of_a_run() -> None:
    net = octo_exp.quantize(made(), "int8")
    adam = torch.optim.Adam(net.parameters())
    form = composed().callbacks.cost.grad_input_form
    expected = traced(net, (1, 12, 12), batch_size=8, grad_input_form=form, optimizer=optimizer_cost(adam))
    assert octo_exp.trace(net, (1, 12, 12), batch_size=8, optimizer=adam) == expected
    with pytest.raises(UserError, match=r"^trace takes a"):
        octo_exp.trace("net", (1, 12, 12), batch_size=8)


@pytest.mark.parametrize("name", FORMATS)
def test_a_graph_is_written_with_evidence_where_its_format_has_any(name: str, graph: ModelSpec, tmp_path: Path) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    form = module_of(name)
    verified = hasattr(form, "verify")
    path = tmp_path / f"net{form.SUFFIX}"
    done = octo_exp.export(graph, name, out=path, images=list(IMAGES.split(5)) if verified else None)
    assert (done.path, path.exists()) == (path, True)
    assert done.state == ("verified" if verified else "computed")
    assert (done.evidence is not None) == verified
    if done.evidence is not None:
        assert (done.evidence["images"], done.evidence["equal"]) == (12, 12)
    assert (done.manifest["graph"], "run" in done.manifest) == ("given", False)
    assert Path(f"{path}.json").is_file()


def test_a_trained_net_is_calibrated_first_and_its_integers_are_those_of_the_file(tmp_path: Path) -> None:
    net = octo_exp.quantize(made(), "octo")
    net(IMAGES).square().mean().backward()
    done = octo_exp.export(net, "mcu", out=tmp_path / "net.pkl", images=IMAGES, fresh=made(), activations="absmax")
    wanted = octo_exp.IntegerNet(octo_exp.calibrate(net, [IMAGES], fresh=made(), activations="absmax"))
    assert torch.equal(octo_exp.IntegerNet(octo_exp.read_graph(done.path))(IMAGES), wanted(IMAGES))
    again = octo_exp.export(wanted, "mcu", out=tmp_path / "again.pkl", images=IMAGES)
    assert again.path.read_bytes() == done.path.read_bytes()


def test_a_run_is_verified_on_its_own_test_images(tmp_path: Path) -> None:
    go(tmp_path / "net", *SMALL, "quant=int8", "data.limit_train=64", "data.limit_test=20", "data.epochs=1")
    done = octo_exp.export(tmp_path / "net", "mcu", activations="absmax")
    assert done.path == tmp_path / "net" / "export" / "net.pkl"
    assert (done.state, done.manifest["calibration"]["activations"]) == ("verified", "absmax")
    assert (done.evidence or {})["images"] == done.manifest["test_images"] == 20
    with pytest.raises(UserError, match="leave out images and fresh"):
        octo_exp.export(tmp_path / "net", "mcu", images=IMAGES)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"format": "onx"}, ConfigError, "'onx'.*'onnx'"),
        ({"hw": "tpu_v2"}, ConfigError, "'tpu_v2'.*'tpu_v1'"),
        ({"format": "mcu", "out": "net.pkl", "hw": "tpu_v1"}, ConfigError, "hw= means nothing to format=mcu"),
        ({"out": None}, UserError, "out= must be given"),
        ({"out": "net.onnx"}, UserError, r"writes \.c; give out=net\.c"),
        ({"images": None}, UserError, "images= must be given"),
        ({"images": []}, UserError, "one or more"),
        ({"images": torch.rand(2, 1, 5, 12)}, UserError, r"must be \[N, 1, 12, 12\].*got \[2, 1, 5, 12\]"),
        ({"images": torch.rand(0, 1, 12, 12)}, UserError, r"got \[0, 1, 12, 12\]"),
        ({"subject": 3}, UserError, "or a torch.nn.Module, got int"),
        ({"trust": ["mine"]}, UserError, "trust"),
        ({"percentile": 99.0}, UserError, "percentile: the subject is an int8 graph already"),
        ({"fresh": nn.Identity()}, UserError, "fresh: the subject is an int8 graph already"),
        ({"subject": made(), "percentil": 99.0}, ConfigError, "'percentil'.*'percentile'"),
        ({"subject": "no/such", "images": None}, UserError, "no/such: .*config.yaml"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(
    changes: dict[str, Any], kind: type, words: str, graph: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"subject": graph, "format": "c", "out": "net.c", "images": IMAGES} | changes
    with pytest.raises(kind, match=words) as caught:
        octo_exp.export(**given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_files_that_differ_from_the_graph_are_not_kept(
    graph: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of("text"), "verify", lambda *given: Evidence(images=12, equal=11, by="a bench"))
    with pytest.raises(UserError, match="does not verify: 1 of 12 images"):
        octo_exp.export(graph, "text", out=tmp_path / "net", images=IMAGES)
    assert not list(tmp_path.iterdir())
