"""A sweep's table is made from its folders alone."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from octo_exp.config import FAILURE_FILE
from octo_exp.runs.sweep.callback import SummaryCallback
from octo_exp.runs.sweep.jobs import read_failures, read_runs, read_unfinished
from octo_exp.runs.sweep.summary import main, report, summary_table, transfer_tables, update_tables
from tests.refusals import assert_names

RESULTS = {
    "data": "digits",
    "source": None,
    "model": "vgg11",
    "quant": "int8",
    "seed": 0,
    "epochs": 3,
    "test/acc": 0.97654,
    "val/acc": 0.95,
    "cost/systolic_32x32/train_step_cycles": 1234567,
    "cost/systolic_32x32/forward_cycles": 400000,
    "cost/convention": "octo",
    "memory/saved_for_backward_mib": 1.25,
    "memory/peak_mib": 512.04,
    "train/images_per_s": 1999.6,
    "seconds": 61.26,
    "weights_sha256": "ab",
}


def write_run(folder: Path, *overrides: str, **results: Any) -> None:
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {line}\n" for line in overrides))
    (folder / "results.json").write_text(json.dumps({**RESULTS, **results}))


def write_failure(folder: Path, error: str, *overrides: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE_FILE).write_text(json.dumps({"error": error, "overrides": overrides}))


def headers(table: Any) -> list[str]:
    return [column.header for column in table.columns]


def cells(table: Any) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_rows_hold_results_settings_and_the_job_in_natural_order(tmp_path: Path) -> None:
    for job in ("10", "2"):
        write_run(tmp_path / job, "+optim.optimizer.lr=0.1", "data@source=mnist", "seed=9", "~callbacks", seed=int(job))
    rows = read_runs(tmp_path)
    assert [row["job"] for row in rows] == ["2", "10"]
    assert rows[0]["set/optim.optimizer.lr"] == 0.1
    # What the run itself wrote counts more than what it was asked.
    assert (rows[0]["seed"], rows[0]["source"]) == (2, None)


def test_caches_and_failed_jobs_are_no_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "_sources" / "mnist")
    write_run(tmp_path / "1")
    write_failure(tmp_path / "1", "out of luck", "seed=1")
    assert [row["job"] for row in read_runs(tmp_path)] == ["0"]
    assert read_failures(tmp_path) == [{"job": "1", "error": "out of luck", "overrides": ["seed=1"]}]


def test_one_run_folder_is_a_sweep_of_one(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert [row["job"] for row in read_runs(tmp_path)] == ["."]


@pytest.mark.parametrize("text", ["{", "[]", ""])
@pytest.mark.parametrize("name", ["results.json", FAILURE_FILE])
def test_a_damaged_file_is_named_and_hides_no_other_job(tmp_path: Path, text: str, name: str) -> None:
    write_run(tmp_path / "0")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / name).write_text(text)
    assert [row["job"] for row in read_runs(tmp_path)] == ["0"]
    (failure,) = read_failures(tmp_path)
    assert failure["job"] == "1"
    assert f"{name} " in failure["error"]
    assert failure["error"].endswith("delete it to leave the job out")


def test_what_ran_counts_not_what_was_asked_for_last(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "optim.optimizer.lr=0.2", overrides=["optim.optimizer.lr=0.1"], identity={"config": {}})
    (row,) = read_runs(tmp_path)
    assert row["set/optim.optimizer.lr"] == 0.1
    assert "identity" not in row


def test_evaluations_and_runs_moved_away_are_no_jobs(tmp_path: Path) -> None:
    for place in ("0", "0/evaluations/abc", "0/_previous/1"):
        write_run(tmp_path / place)
    assert [row["job"] for row in read_runs(tmp_path)] == ["0"]


def test_jobs_that_were_broken_off_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    for job in ("0", "1"):
        (tmp_path / job).mkdir(exist_ok=True)
        (tmp_path / job / "config.yaml").write_text("seed: 0")
    assert read_unfinished(tmp_path) == ["1"]
    console = Console(file=io.StringIO(), width=200)
    assert report(tmp_path, console) == 0
    assert "not finished: job 1: started again, it goes on" in console.file.getvalue()


def test_the_table_starts_with_what_varies_and_formats_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "model=vgg11", "optim.optimizer.lr=0.1")
    write_run(tmp_path / "1", "model=lenet5", "optim.optimizer.lr=0.2", model="lenet5", **{"val/acc": None})
    table = summary_table(read_runs(tmp_path))
    assert headers(table) == [
        "job",
        "model",
        "optim.optimizer.lr",
        "test/acc",
        "val/acc",
        "train step cycles, systolic_32x32",
        "saved for backward, MiB",
        "peak, MiB",
        "images/s",
        "seconds",
    ]
    assert cells(table) == [
        ["0", "vgg11", "0.1", "0.977", "0.950", "1,234,567", "1.25", "512.0", "2,000", "61.3"],
        ["1", "lenet5", "0.2", "0.977", "-", "1,234,567", "1.25", "512.0", "2,000", "61.3"],
    ]


def test_where_nothing_varies_the_names_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1")
    assert headers(summary_table(read_runs(tmp_path)))[:5] == ["job", "data", "model", "quant", "seed"]


def test_each_profile_has_its_column(tmp_path: Path) -> None:
    write_run(tmp_path, **{"cost/tpu_v1/train_step_cycles": 7})
    table = summary_table(read_runs(tmp_path))
    assert "train step cycles, tpu_v1" in headers(table)
    assert cells(table)[0][headers(table).index("train step cycles, tpu_v1")] == "7"


def test_transfer_is_one_matrix_a_model_and_scheme(tmp_path: Path) -> None:
    accuracies = {("digits", "mnist"): [0.9, 0.92], ("mnist", "mnist"): [0.95], ("mnist", "fashion"): [0.8]}
    job = 0
    for (source, data), values in accuracies.items():
        for seed, accuracy in enumerate(values):
            write_run(tmp_path / str(job), source=source, data=data, seed=seed, **{"test/acc": accuracy})
            job += 1
    write_run(tmp_path / "90", source="mnist", data="mnist", quant="octo")
    write_run(tmp_path / "91", source=None)
    first, second = transfer_tables(read_runs(tmp_path))
    assert (first.title, second.title) == ("transfer, test/acc: vgg11, int8", "transfer, test/acc: vgg11, octo")
    assert headers(first) == ["source", "-> mnist", "-> fashion"]
    assert cells(first) == [["digits", "0.910 ± 0.014", "-"], ["mnist", "0.950", "0.800"]]
    assert cells(second) == [["mnist", "0.977"]]


def test_no_matrix_without_a_source(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert transfer_tables(read_runs(tmp_path)) == []


def test_the_report_writes_the_csv_and_lists_failures(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", seed=1, extra=5)
    write_failure(tmp_path / "2", "lost [bold]brackets[/bold]", "seed=2", "hw=[a,b]")
    (tmp_path / "1" / "wandb").mkdir()
    console = Console(file=io.StringIO(), width=400)
    assert report(tmp_path, console) == 1
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 jobs" in text
    assert f"`wandb leet {tmp_path}/1/wandb` shows a run" in text
    assert "failed: job 2 (seed=2 hw=[a,b]): lost [bold]brackets[/bold]\n" in text
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["job", "data", "source", "model", "quant", "seed"]
    assert [(row["seed"], row["extra"], row["test/acc"]) for row in rows] == [
        ("0", "", "0.97654"),
        ("1", "5", "0.97654"),
    ]


def test_nothing_is_cut_where_the_output_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiles = {f"cost/profile_number_{index}/train_step_cycles": 10**9 for index in range(6)}
    write_run(tmp_path, **profiles)
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert all(f"train step cycles, profile_number_{index}" in text for index in range(6))


def test_the_command_tells_a_wrong_folder_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: there is no folder {tmp_path}/nowhere: give the folder of a sweep or of a run\n"
    assert main([str(tmp_path)]) == 0
    assert "holds no results.json" in capsys.readouterr().out


def test_the_command_fails_where_a_job_failed(tmp_path: Path) -> None:
    write_failure(tmp_path / "0", "lost")
    assert main([str(tmp_path)]) == 1


def test_a_table_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    (tmp_path / "summary.csv").mkdir()
    assert main([str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert_names(told.err, f"error: {tmp_path}/summary.csv ... Is a directory; choose another folder")
    assert "vgg11" in told.out


def test_the_callback_counts_failures_for_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(sys.modules["octo_exp.runs.sweep.callback"], "report_failures", counted.append)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    write_run(tmp_path / "0")
    SummaryCallback().on_multirun_end(config)
    write_failure(tmp_path / "1", "lost")
    write_failure(tmp_path / "2", "lost")
    SummaryCallback().on_multirun_end(config)
    (tmp_path / "0" / "results.json").write_text("{")
    SummaryCallback().on_multirun_end(config)
    assert counted == [0, 2, 3]


def test_update_tables_put_rules_against_data_sets(tmp_path: Path) -> None:
    jobs = [
        ("cifar10", "full", 0, 0.5),
        ("cifar10", "full", 1, 0.7),
        ("pets", "full", 0, 0.4),
        ("pets", "head", 0, 0.1),
    ]
    for i, (data, update, seed, accuracy) in enumerate(jobs):
        facts = {"update": update, "update/optimizer": "sgd", "update/extra_memory_kb": 100.25, "seconds": 10 * (i + 1)}
        write_run(tmp_path / str(i), data=data, seed=seed, **facts, **{"test/acc": accuracy})
    (table,) = update_tables(read_runs(tmp_path))
    assert headers(table)[:3] == ["update", "optimizer", "extra memory, KB"]
    assert headers(table)[-3:] == ["seconds", "cifar10", "pets"]
    full, head = cells(table)
    assert full == ["full", "sgd", "100.2", "1,234,567", "20", "0.600 ± 0.141", "0.400"]
    assert head[-2:] == ["-", "0.100"]


def test_one_rule_makes_no_update_table(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, update="full", **{"update/optimizer": "sgd"})
    assert update_tables(read_runs(tmp_path)) == []


def test_only_seeds_are_averaged_in_an_update_table(tmp_path: Path) -> None:
    jobs = [(50, 0.1, 0, 0.5), (50, 0.1, 1, 0.7), (100, 0.1, 0, 0.8), (100, 0.2, 0, 0.1)]
    for i, (budget, rate, seed, accuracy) in enumerate(jobs):
        settings = (f"update.budget_kb={budget}", f"update.lr={rate}", "update.mode=released", f"hydra.run.dir=r{i}")
        facts = {"update": "sparse", "update/optimizer": "sgd", "test/acc": accuracy}
        write_run(tmp_path / str(i), *settings, seed=seed, **facts)
    facts = {"update": "full", "update/optimizer": "sgd", "test/acc": 0.9}
    for i, quant in enumerate(("native", "int8")):
        write_run(tmp_path / f"9{i}", "update.mode=released", "update.optimizer=sgd", quant=quant, **facts)
    (table,) = update_tables(read_runs(tmp_path))
    assert [(row[0], row[-1]) for row in cells(table)] == [
        ("sparse quant=int8 budget_kb=50 lr=0.1", "0.600 ± 0.141"),
        ("sparse quant=int8 budget_kb=100 lr=0.1", "0.800"),
        ("sparse quant=int8 budget_kb=100 lr=0.2", "0.100"),
        ("full quant=native", "0.900"),
        ("full quant=int8", "0.900"),
    ]


def test_budgets_of_one_rule_make_an_update_table(tmp_path: Path) -> None:
    for budget in (50, 100):
        facts = {"update": "sparse", "update/optimizer": "sgd"}
        write_run(tmp_path / str(budget), f"update.budget_kb={budget}", **facts)
    (table,) = update_tables(read_runs(tmp_path))
    assert [row[:2] for row in cells(table)] == [["sparse budget_kb=50", "sgd"], ["sparse budget_kb=100", "sgd"]]
