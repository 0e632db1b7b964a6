"""Real runs through every format and back: each file is used by another program and gives the graph's answers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from octo_exp.cli.export import export as main
from octo_exp.exports import subject
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.integers import IntegerNet
from octo_exp.nn import fold
from octo_exp.runs.run import run
from tests.configs import composed
from tests.exports.trip_helpers import (
    DIGITS,
    FILES,
    FORMATS,
    QUICK,
    SLOW,
    Trip,
    c_logits,
    contents,
    edited,
    onnx_logits,
    take,
    text_logits,
)
from tests.refusals import assert_names

# Residual branches: half of what the quick ones took.
LONG = ("resnet20",)
NAMES = [
    *(pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in QUICK),
    *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.data]) for name in SLOW),
]
SMALL = f"{DIGITS} data.limit_train=100 data.limit_test=20 data.epochs=1 model=simplecnn model.width=4"


@pytest.fixture(scope="module")
def trips(tmp_path_factory) -> Callable[[str], Trip]:
    """A case's name -> its run with its exports, made once."""
    made: dict[str, Trip] = {}

    def trip(name: str) -> Trip:
        if name not in made:
            torch.manual_seed(0)
            made[name] = take(name, tmp_path_factory.mktemp("trip"))
        return made[name]

    return trip


@pytest.fixture(autouse=True)
def _real_data(request) -> None:
    if request.node.get_closest_marker("data"):
        request.getfixturevalue("data_dir")


def expected(trip: Trip, form: str) -> np.ndarray:
    """What the graph makes of the codes that a manifest leads to."""
    return trip.graph.net.classify(torch.from_numpy(trip.codes(form))).numpy()


def accuracy(trip: Trip, logits: np.ndarray) -> float:
    return float((logits.argmax(1) == trip.labels[: len(logits)]).mean())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_run_keeps_its_answers(name, trips):
    trip = trips(name)
    content = trip.manifest("mcu")
    # A run of quant=ptq is tested in integers itself.
    if trip.graph.origin != "ptq":
        assert content["accuracy_of_run"] == pytest.approx(trip.results["test/acc"], abs=1e-6)
    else:
        assert content["accuracy"] == pytest.approx(trip.results["test/acc"], abs=1e-6)
    assert accuracy(trip, trip.graph.net(torch.from_numpy(trip.normalized("mcu"))).numpy()) == content["accuracy"]
    assert content["graph"] == {"lenet5": "ptq", "tiny": "native"}.get(name.split()[0], trip.graph.origin)
    assert content["same_class_as_run"] >= trip.case.same_class
    # Far from a tenth, chance, and from what any run reaches.
    assert content["accuracy"] > 2 / 10


@pytest.mark.parametrize("name", NAMES)
def test_mcu_gives_the_integers_and_is_a_model_like_any_other(name, trips, tmp_path):
    trip = trips(name)
    again = IntegerNet(read_model(trip.file("mcu"))).eval()
    assert np.array_equal(again.classify(torch.from_numpy(trip.codes("mcu"))).numpy(), expected(trip, "mcu"))
    given = [s for s in trip.case.settings.split() if s.startswith(("data=", "data.", "logger="))]
    model = [
        "model=graph",
        f"model.path={trip.file('mcu')}",
        *trip.case.graph.split(),
        "quant=native",
        "train=false",
        "callbacks={}",
    ]
    results = run(composed(*given, *model, save_dir=tmp_path))
    # quant.mode=integer rescales in float32: codes may be those beside, and of classes that tie another one wins.
    assert results["test/acc"] == pytest.approx(trip.manifest("mcu")["accuracy"], abs=0.0101)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_onnx_classifies_alike_in_a_session_of_its_own(name, trips):
    trip = trips(name)
    images = trip.normalized("onnx")
    logits = onnx_logits(trip.file("onnx"), images)
    ours = trip.graph.net(torch.from_numpy(images)).numpy()
    assert (logits.argmax(1) != ours.argmax(1)).sum() <= max(1, 0.005 * len(images))
    # In a shallow net most images have no code that differs at all.
    if name in QUICK:
        assert (logits == ours).all(1).mean() > 0.5
    assert accuracy(trip, logits) == pytest.approx(trip.manifest("onnx")["accuracy_in_onnxruntime"])


@pytest.mark.parametrize("name", NAMES)
def test_c_gives_the_integers_when_compiled(name, trips, tmp_path):
    trip = trips(name)
    assert np.array_equal(c_logits(trip.file("c"), trip.codes("c"), tmp_path), expected(trip, "c"))


@pytest.mark.parametrize("name", NAMES)
def test_text_gives_the_integers_in_numpy(name, trips, tmp_path):
    trip = trips(name)
    assert np.array_equal(text_logits(trip.file("text"), trip.codes("text"), tmp_path), expected(trip, "text"))


@pytest.mark.parametrize("name", NAMES)
def test_manifests_name_all_files_by_their_hashes_and_nothing_else_is_there(name, trips):
    trip = trips(name)
    manifests, folder = {form: trip.manifest(form) for form in FORMATS}, trip.run / "export"
    assert {path.name for path in folder.iterdir()} == {
        *(file for files in FILES.values() for file in files),
        *(f"{files[0]}.json" for files in FILES.values()),
    }
    found = contents(folder)
    listed = {file: facts for content in manifests.values() for file, facts in content["files"].items()}
    assert {file: facts["sha256"] for file, facts in listed.items()} == {
        file: digest for file, digest in found.items() if not file.endswith(".json")
    }
    for file, facts in listed.items():
        assert facts["bytes"] == (folder / file).stat().st_size
    for form, content in manifests.items():
        assert content["sha256"] == found.get(FILES[form][0])


def test_without_its_compensation_a_net_would_be_another(trips, monkeypatch):
    trip = trips("vgg11")
    kept = trip.manifest("c")["same_class_as_run"]
    monkeypatch.setattr(fold, "_add_to_bias", lambda layer, term: None)
    dropped = subject.graph_of(trip.graph.source, calibration=CALIBRATION, profile=None)
    assert kept >= 0.97
    assert subject.comparison(dropped, trip.graph.source)["same_class_as_run"] < kept - 0.2


CALIBRATION = {
    "images": 256,
    "activations": "mse",
    "percentile": 99.99,
    "symmetric": False,
    "weights_per_channel": True,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A run in float."""
    folder = tmp_path_factory.mktemp("small") / "net"
    run(composed(*SMALL.split(), "quant=fp32", save_dir=folder))
    return folder


def refused(folder: Path, form: str, capsys, *more: str) -> str:
    """Why a run is not exported, one line; earlier exports stay as they are."""
    for name in FILES[form]:
        path = folder / "export" / name / "graph.txt" if form == "text" else folder / "export" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    (folder / "export" / f"{FILES[form][0]}.json").write_text("before")
    before = contents(folder)
    capsys.readouterr()
    assert main([f"format={form}", f"run={folder}", *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert contents(folder) == before
    assert not list((folder / "export").glob(".*"))
    return error


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ("quant=lac", "quant.compensation.granularity=element", "quant.skip=[]"),
            "layer features.0: compensation.granularity=element ... granularity=channel",
        ),
        (("quant=fp32", "model._target_=tests.exports.trip_helpers.Squashed", "trust=[tests]"), "squash: Sigmoid"),
    ],
)
def test_what_has_no_int8_form_is_named(settings, words, tmp_path, capsys):
    run(composed(*SMALL.split(), *settings, save_dir=tmp_path / "net"))
    for form in FORMATS:
        assert_names(refused(tmp_path / "net", form, capsys, "trust=tests"), words)


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_without_its_checkpoint(form, small, tmp_path, capsys):
    folder = shutil.copytree(small, tmp_path / "net")
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert "holds no checkpoints/last.ckpt; give a finished run's folder" in refused(folder, form, capsys)


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_whose_data_set_is_not_here(form, small, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OCTO_DATA_DIR", raising=False)
    folder = shutil.copytree(small, tmp_path / "net")
    edited(folder, name="flowers", source="auto", folder="flowers", root=None)
    assert_names(refused(folder, form, capsys), "data set flowers: ... set OCTO_DATA_DIR")
    edited(folder, root="/nowhere")
    assert "there is no folder /nowhere/flowers; set OCTO_DATA_DIR" in refused(folder, form, capsys)


def test_a_run_from_elsewhere_finds_its_data_set(small, tmp_path, monkeypatch):
    folder = shutil.copytree(small, tmp_path / "net")
    edited(folder, source="auto", name="drawn", folder="drawn", root="/nowhere", shape=[1, 8, 8], limit_train=None)
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "data" / "drawn" / ("train", "test")[i % 6 == 0] / str(i // 6) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    monkeypatch.setenv("OCTO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("OCTO_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["format=mcu", f"run={folder}"]) == 0
    assert json.loads((folder / "export" / "net.pkl.json").read_text())["test_images"] == 10


def test_a_device_that_is_too_small(tmp_path, capsys):
    run(composed(*SMALL.split(), "model.width=600", "model.hidden=2", "quant=fp32", save_dir=tmp_path / "net"))
    error = refused(tmp_path / "net", "c", capsys, "hw=stm32f746", "calibration.images=4")
    assert "hw=stm32f746 has 327,680; use a smaller network or image, or another hw=" in error
    assert "28x28x1 -> 24x24x600" in error
