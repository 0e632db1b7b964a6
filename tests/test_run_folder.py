"""A run's folder is the truth: nothing is lost, replaced or recorded as something that it is not."""

import csv
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from octo_exp.base.errors import UserError
from octo_exp.base.lock import HeldError, hold
from octo_exp.config import identity
from octo_exp.runs import checkpoint
from octo_exp.runs.sweep.jobs import read_unfinished
from tests.run_helpers import SMALL, go
from tests.test_resume import EVERY, FINE, accompanied, broken_off, numbers

INT8 = (*FINE, "quant=int8")
LAST = "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, go(folder, *INT8)


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its name; the lock says nothing about the run."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def changed(path: Path, **nodes: Any) -> None:
    """Write a checkpoint again with parts of it replaced, None taking them away."""
    content = torch.load(path, weights_only=True)
    for key, value in nodes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    torch.save(content, path)


# Going on.


def test_a_longer_max_steps_goes_on_inside_the_epoch(tmp_path):
    """The first run ends inside epoch 0; its end of the epoch is not the longer run's."""
    settings = (*INT8, "optim.scheduler=null", "trainer.max_epochs=9")
    whole = go(tmp_path / "whole", *settings, "trainer.max_steps=9")
    go(tmp_path / "part", *settings, "trainer.max_steps=5")
    resumed = go(tmp_path / "part", *settings, "trainer.max_steps=9", "resume=auto")
    assert numbers(resumed) == numbers(whole)
    assert (tmp_path / "part/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_a_longer_schedule_begins_with_its_own_rate(tmp_path, monkeypatch):
    """The schedule of the shorter run has ended at a rate of 0."""
    from octo_exp.runs.lit import LitClassifier

    rates = []
    step = LitClassifier.training_step

    def spy(self, *args):
        rates.append(self.optimizers().param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(LitClassifier, "training_step", spy)
    go(tmp_path, *INT8, "trainer.max_epochs=1")
    assert rates[-1] > 0
    rates.clear()
    go(tmp_path, *INT8, "trainer.max_epochs=2", "resume=auto")
    # Half-way down the cosine, where the shorter one had come to its end.
    assert 0.0003 < rates[0] < 0.0007


def test_a_run_with_nothing_left_to_train_says_so(copy, capsys):
    go(copy.parent / "new", *INT8, f"ckpt={copy}")
    assert "nothing was left to train: " in capsys.readouterr().out


def test_a_half_done_run_is_neither_overwritten_nor_gone_on_with_unasked(tmp_path, monkeypatch):
    broken_off(monkeypatch, tmp_path, *INT8, hook="on_test_start", call=1)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds this run, half done \(epoch 1, step 30\); resume=auto goes on"):
        go(tmp_path, *INT8)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("optim.optimizer.lr=0.01", r"optim\.optimizer\.lr is 0\.001 there and 0\.01 here"),
        ("optim=sgd", "optim.optimizer"),
        ("seed=1", "seed is 0 there and 1 here"),
        ("data.batch_size=24", "batch_size is 12 there and 24 here"),
        ("quant=lac", "quant"),
        ("trainer.max_epochs=1", "trainer.max_epochs is 2 there and 1 here"),
        ("data.val_fraction=0.2", "val_fraction is 0.1 there and 0.2 here"),
        ("callbacks=early_stop", "callbacks.early_stop"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_the_key(trained, tmp_path, setting, line):
    with pytest.raises(UserError, match=line) as caught:
        go(tmp_path, *INT8, setting, f"ckpt={trained[0]}")
    assert "init_from=" in str(caught.value)
    assert not (tmp_path / "config.yaml").exists()


def test_what_a_step_costs_may_be_asked_anew(copy):
    more = go(copy, *INT8, "hw=[tpu_v1]", "trainer.max_epochs=3", "resume=auto")
    assert more["epochs"] == 3
    assert more["cost/tpu_v1/train_step_cycles"] > 0


# Checkpoints that are not what was written.


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(data)


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip_a_bit, tear])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_taken(copy, damage, capsys):
    damage(copy / LAST)
    for settings in ("train=false", "trainer.max_epochs=3"):
        with pytest.raises(UserError, match=r"last\.ckpt is (damaged|not a whole)"):
            go(copy.parent / "other", *INT8, settings, f"ckpt={copy}")
    resumed = go(copy, *INT8, "trainer.max_epochs=3", "resume=auto")
    assert resumed["epochs"] == 3
    assert "going on from" in (told := capsys.readouterr().out)
    assert "best.ckpt instead" in told


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(copy):
    for path in (copy / "checkpoints").iterdir():
        tear(path)
    before = contents(copy)
    with pytest.raises(UserError, match=r"no other checkpoint of .* is whole"):
        go(copy, *INT8, "trainer.max_epochs=3", "resume=auto")
    assert contents(copy) == before


def test_integers_where_weights_were_are_refused_by_name(copy):
    state = torch.load(copy / LAST, weights_only=True)["state_dict"]
    state["net.classifier.0.weight"] = state["net.classifier.0.weight"].to(torch.int32)
    changed(copy / LAST, state_dict=state)
    for settings in (("train=false", f"ckpt={copy}"), ("quant=fp32", f"init_from={copy}")):
        with pytest.raises(UserError, match=r"torch\.int32 for 'classifier\.0\.weight'"):
            go(copy.parent / "other", *INT8, *settings)


@pytest.mark.parametrize("part", ["loops", checkpoint.RUN])
def test_weights_alone_are_nothing_to_go_on_from(copy, part):
    changed(copy / LAST, **{part: None})
    with pytest.raises(UserError, match="init_from= starts from"):
        go(copy.parent / "other", *INT8, "trainer.max_epochs=3", f"ckpt={copy}")


# One folder, one run.


def test_an_evaluation_lies_beside_the_results_of_its_run(copy, trained):
    before = contents(copy)
    evaluated = go(copy, *INT8, "train=false", f"ckpt={copy}")
    after = contents(copy)
    assert {name: after[name] for name in before} == before
    (place,) = (copy / "evaluations").glob("*/results.json")
    assert json.loads(place.read_text())["test/acc"] == evaluated["test/acc"] == trained[1]["test/acc"]


def test_a_refused_command_changes_no_file(copy):
    before = contents(copy)
    for settings in (
        ("model.hidden=10", f"ckpt={copy}"),
        ("trainer.max_epochs=1", "resume=auto"),
        ("init_from=/no/run",),
    ):
        with pytest.raises(UserError):
            go(copy, *INT8, *settings)
        assert contents(copy) == before


def test_another_run_moves_the_one_before_it_out_of_the_way(copy, capsys):
    before = contents(copy)
    other = go(copy, *INT8, "callbacks=early_stop")
    assert "held another run" in capsys.readouterr().out
    assert contents(copy / "_previous" / "1") == before
    assert json.loads((copy / "results.json").read_text())["fingerprint"] == other["fingerprint"]


def test_results_of_weights_that_are_others_now_are_stale(tmp_path):
    float_run, graph = tmp_path / "float", tmp_path / "graph"
    settings = (*SMALL, "quant=native", f"init_from={float_run}", "train=false", "quant.head=original")
    go(float_run, *SMALL, "quant=fp32")
    first = go(graph, *settings)
    assert go(graph, *settings)["fingerprint"] == first["fingerprint"]
    go(float_run, *SMALL, "quant=fp32", "seed=1")
    second = go(graph, *settings)
    assert second["fingerprint"] != first["fingerprint"]
    assert second["weights_sha256"] != first["weights_sha256"]


def test_data_that_changed_are_another_experiment(tmp_path):
    from tests.test_run_starts import make_image_folder

    make_image_folder(tmp_path / "data" / "five", classes=5)
    place = ("data.source=imagefolder", f"data.root={tmp_path / 'data'}", "data.folder=five", "data.classes=5")
    settings = (*SMALL, "quant=fp32", "data.limit_train=null", "data.batch_size=8", *place)
    first = go(tmp_path / "run", *settings)
    moved = Path(shutil.move(tmp_path / "data", tmp_path / "elsewhere"))
    assert go(tmp_path / "run", *settings, f"data.root={moved}")["fingerprint"] == first["fingerprint"]
    shutil.copy(moved / "five/train/class0/0.png", moved / "five/train/class0/more.png")
    assert go(tmp_path / "run", *settings, f"data.root={moved}")["fingerprint"] != first["fingerprint"]


def test_a_folder_in_use_is_refused_and_left_alone(copy):
    with hold(copy):
        before = contents(copy)
        with pytest.raises(HeldError, match="in use by process"):
            go(copy, *INT8, "trainer.max_epochs=3", "resume=auto")
        assert contents(copy) == before


def test_a_foreign_folder_is_not_gone_on_with(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear diary")
    with pytest.raises(UserError, match=r"is no run's folder: it has no config\.yaml, and holds thesis\.tex"):
        go(tmp_path, *INT8, "resume=auto")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path, monkeypatch):
    broken_off(monkeypatch, tmp_path, *INT8, hook="on_test_start", call=1)
    for place in (tmp_path, tmp_path / "checkpoints"):
        (place / ".x.partial").write_text("half")
    go(tmp_path, *INT8, "resume=auto")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "setting",
    [
        "callbacks.last_checkpoint.every_n_train_steps=0",
        "trainer.limit_test_batches=-1",
        "logger.csv.flush_logs_every_n_steps=0",
        "callbacks.cost.grad_input_form=x",
    ],
)
def test_a_value_that_is_refused_spoils_no_run(copy, setting):
    before = contents(copy)
    with pytest.raises(UserError) as caught:
        go(copy, *INT8, "trainer.max_epochs=3", setting, "resume=auto")
    assert "\n" not in str(caught.value)
    assert contents(copy) == before


def test_a_run_goes_on_without_what_it_once_started_from(tmp_path, monkeypatch):
    origin = tmp_path / "origin"
    go(origin, *INT8, "trainer.max_epochs=1")
    settings = (*INT8, f"init_from={origin}")
    whole = go(tmp_path / "whole", *settings)
    broken_off(monkeypatch, tmp_path / "part", *settings, f"{EVERY}=5", hook="on_train_batch_start", call=9)
    shutil.rmtree(origin)
    resumed = go(tmp_path / "part", *settings, "resume=auto")
    # Where it started from is told as it was.
    assert numbers(resumed) | {"init_from": None} == numbers(whole) | {"init_from": None}


def test_results_of_the_shorter_run_are_none_of_a_longer_one_that_is_broken_off(copy, monkeypatch):
    longer = ("trainer.max_epochs=3", "resume=auto", f"{EVERY}=5")
    broken_off(monkeypatch, copy, *INT8, *longer, hook="on_train_batch_start", call=9)
    assert not (copy / "results.json").exists()
    assert (copy / "_previous/1/results.json").exists()
    assert read_unfinished(copy) == ["."]


def test_files_in_the_place_of_folders_are_one_line(copy):
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").write_text("")
    before = contents(copy)
    with pytest.raises(UserError, match="checkpoints is no folder; move it away"):
        go(copy, *INT8, "trainer.max_epochs=3", "resume=auto")
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("there", "here", "grows"), [("00:00:10:00", "00:01:00:00", True), ("00:01:00:00", "00:00:00:01", False)]
)
def test_time_may_grow_and_not_shrink(there, here, grows):
    told = [{"config": {"trainer.max_time": value}, "inputs": {}, "numerics": 1} for value in (there, here)]
    assert (identity.obstacle(*told) is None) == grows


# Divergence.


def test_a_run_whose_losses_are_not_finite_is_a_failure(tmp_path):
    """One step, which no further loss sees: the test does."""
    with pytest.raises(UserError, match=r"test/loss is nan at epoch 1, step 1; last good checkpoint: ") as caught:
        go(tmp_path, *INT8, "trainer.max_steps=1", "optim.optimizer.lr=1e30")
    assert json.loads((tmp_path / "failed.json").read_text())["error"] == str(caught.value)
    assert not (tmp_path / "results.json").exists()


class Overflow(Callback):
    """Makes a weight infinite after the n-th batch."""

    def __init__(self, *, call: int) -> None:
        self.left = call

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.left -= 1
        if self.left == 0:
            next(pl_module.net.parameters()).data.fill_(float("inf"))


@pytest.mark.parametrize("call", [4, 15])
def test_the_last_finite_checkpoint_is_kept_and_named(copy, monkeypatch, call):
    good = (copy / LAST).read_bytes()
    with accompanied(monkeypatch, Overflow(call=call)), pytest.raises(UserError, match=r"checkpoint: .*last\.ckpt"):
        go(copy, *INT8, "trainer.max_epochs=3", "resume=auto")
    assert (copy / LAST).read_bytes() == good


def test_a_figure_that_is_not_finite_is_no_result(tmp_path, monkeypatch):
    import octo_exp.runs.run as module

    monkeypatch.setattr(module, "callback_results", lambda callbacks: {"quant/min_g_cosine": float("nan")})
    with pytest.raises(UserError, match=r"quant/min_g_cosine is nan"):
        go(tmp_path, *SMALL, "quant=fp32")
    assert not (tmp_path / "results.json").exists()


def test_several_processes_are_refused_at_once(tmp_path):
    for setting in ("trainer.num_nodes=2", "trainer.devices=2", "trainer.devices=[0,1]"):
        with pytest.raises(UserError, match="one process trains; set both to 1"):
            go(tmp_path, *SMALL, setting)


def test_each_logged_step_is_once_in_the_history(copy):
    with (copy / "metrics.csv").open() as file:
        rows = [(row["step"], row["epoch"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == len(set(rows)) == 30
