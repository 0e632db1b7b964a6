"""A transfer under quant=ptq: its source trains in float, as the run itself does before it is quantised."""

import json
from pathlib import Path

import pytest

from octo_exp.base.errors import UserError
from octo_exp.runs.posttraining import GRAPH_FILE
from octo_exp.runs.run import run
from tests.configs import composed

PAIR = (
    *("model=simplecnn", "model.width=4", "model.hidden=12", "logger=csv", "callbacks={}"),
    *("data.limit_train=60", "data.limit_test=20", "data.epochs=1"),
    *("data@source=digits", "source.limit_train=100", "source.limit_test=20", "source.epochs=1", "source.name=before"),
)


def go(folder: Path, *settings: str) -> dict:
    return run(composed(*PAIR, *settings, save_dir=folder))


@pytest.mark.slow
def test_the_source_of_a_quantised_run_is_a_float_run(tmp_path):
    results = go(tmp_path / "ptq", "quant=ptq", "quant.calibration.images=16")
    assert (tmp_path / "ptq" / GRAPH_FILE).is_file()
    (source,) = (tmp_path / "_sources").iterdir()
    assert results["init_from"] == str(source)
    assert source.name.startswith("before-SimpleCNN-fp32-s0-")
    assert not (source / GRAPH_FILE).exists()
    found = json.loads((source / "results.json").read_text())
    assert found["quant"] == "fp32"
    assert "float/test/acc" not in found
    # A float run, and one with another calibration, have the same source.
    go(tmp_path / "float", "quant=fp32")
    go(tmp_path / "other", "quant=ptq", "quant.calibration.images=8")
    assert list((tmp_path / "_sources").iterdir()) == [source]


def test_a_wrong_calibration_is_refused_before_the_source_trains(tmp_path):
    with pytest.raises(UserError, match=r"^calibration.images=0"):
        go(tmp_path / "ptq", "quant=ptq", "quant.calibration.images=0")
    assert not (tmp_path / "_sources").exists()
