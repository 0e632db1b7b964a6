"""The benchmark of inference runs, checks what it times, and keeps what it measured."""

import json

import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.bench import deploy, graphs
from octo_exp.bench.measure import in_turns

SMALL = ("model=lenet5", "data=mnist")


def test_one_round_of_every_subject(tmp_path, capsys):
    path = tmp_path / "deploy.json"
    assert deploy.main([*SMALL, "--rounds", "1", "--batches", "1,3", "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert set(content["batches"]) == {"1", "3"}
    for row in content["batches"].values():
        assert set(row["milliseconds"]) == set(deploy.SUBJECTS)
        assert row["ratio"]["onnxruntime"]["ratio"] > 0
    shown = capsys.readouterr().out
    assert "onnxruntime / integers" in shown
    assert "model=lenet5 data=mnist" in shown


def test_forms_that_disagree_are_not_timed():
    images = torch.randn(400, 4)
    subjects = {"integers": lambda x: x, "onnxruntime": lambda x: torch.cat([-x[:3], x[3:]])}
    with pytest.raises(UserError, match=r"agree on 99\.\d% of the images: nothing is timed"):
        deploy.check(subjects, images)
    deploy.check(subjects | {"onnxruntime": lambda x: x}, images)


@pytest.mark.parametrize("bench", [deploy, graphs])
@pytest.mark.parametrize("batches", ["a", "", "0", "-1", "1,", "1.5", "1;64"])
def test_batch_sizes_that_are_none_end_with_code_2(bench, batches, capsys):
    with pytest.raises(SystemExit) as caught:
        bench.main([f"--batches={batches}"])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"argument --batches: {batches!r} is no list of batch sizes; write --batches 1,64")


def test_a_turn_begins_with_a_call_that_is_not_timed():
    order = []
    steps = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = in_turns(steps, rounds=2, calls=3)
    assert order == ["a"] * 4 + ["b"] * 4 + ["a"] * 4 + ["b"] * 4
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_batch_sizes():
    assert deploy.batch_sizes("1,7,64") == [1, 7, 64]


def test_a_model_that_there_is_not_is_one_line(capsys):
    assert deploy.main(["model=none"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
