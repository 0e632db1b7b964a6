"""Update rules side by side, each at its own best learning rate: rates are tried on validation, seeds are tested.

    python -m sweeps.compare_updates data=flowers5_32,cifar100_20c data.epochs=11 --jobs 2

A rule is `update:optimizer`. For each data set and rule the rates are tried with the first seed; where the best one is
the largest or smallest tried, the next is tried too, so no rule wins by its grid. The two best then run with all seeds,
and of the one with the better mean validation accuracy the test accuracy is reported. A run that diverges counts as 0.
Every job is a call of train.py in a folder of its own; started again, the study goes on.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from octo_exp.base.configs import conf_folder
from octo_exp.base.errors import FailedError, UserError
from octo_exp.base.files import write_json

RULES = "head_only:sgd_nomom,mcunet_5fps_99kb:sgd_nomom,mcunet_5fps_99kb:sgd_scale_nomom"
# Of a step; a factor of 2 apart.
RATES = "0.025,0.05,0.1"
# How far a grid may grow on either side.
_MOST_RATES = 12
# Rates that run with every seed: the best one of a single seed may lie where others diverge.
_FINALISTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of train.py."""

    data: str
    rule: str
    rate: float
    seed: int

    @property
    def settings(self) -> list[str]:
        """Return its settings of the command line."""
        update, _, optimizer = self.rule.partition(":")
        chosen = [f"data={self.data}", f"update={update}", f"update.optimizer={optimizer}"]
        return ["experiment=transfer", *chosen, f"update.lr={self.rate}", f"seed={self.seed}"]

    @property
    def folder(self) -> str:
        """Return the name of its folder."""
        return f"{self.data}_{self.rule.replace(':', '_')}_lr{self.rate:g}_s{self.seed}"


Run = Callable[[Sequence[Job]], list[dict[str, Any]]]


def tried_rates(run: Run, *, data: str, rule: str, rates: Iterable[float], seed: int) -> dict[float, float]:
    """Return the validation accuracy of each rate that was tried, with rates on both sides of the best one."""
    tried: dict[float, float] = {}
    wanted = sorted(rates)
    while wanted:
        found = run([Job(data=data, rule=rule, rate=rate, seed=seed) for rate in wanted])
        tried |= {rate: result.get("val/acc", 0.0) for rate, result in zip(wanted, found, strict=True)}
        best = ranked(tried)[0]
        beyond = [best * 2] if best == max(tried) else [best / 2] if best == min(tried) else []
        wanted = beyond if len(tried) < _MOST_RATES else []
    return dict(sorted(tried.items()))


def ranked(accuracies: Mapping[float, float]) -> list[float]:
    """Return rates from best to worst, of equal ones the lower first."""
    return sorted(accuracies, key=lambda rate: (-accuracies[rate], rate))


def study(
    run: Run, *, sets: Sequence[str], rules: Sequence[str], rates: Sequence[float], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a row for each data set and rule: the rate, accuracies by seed, memory, cycles and seconds."""
    pairs = list(itertools.product(sets, rules))
    # Pairs do not wait for each other; the jobs beneath are what the pool counts.
    with ThreadPoolExecutor(max_workers=len(pairs)) as pool:
        return list(pool.map(lambda pair: _row(run, pair[0], pair[1], rates, seeds), pairs))


def _row(run: Run, data: str, rule: str, rates: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    tried = tried_rates(run, data=data, rule=rule, rates=rates, seed=seeds[0])
    finalists = {
        rate: run([Job(data=data, rule=rule, rate=rate, seed=seed) for seed in seeds])
        for rate in ranked(tried)[:_FINALISTS]
    }
    means = {
        rate: statistics.fmean(result.get("val/acc", 0.0) for result in results) for rate, results in finalists.items()
    }
    rate = ranked(means)[0]
    found = finalists[rate]
    first = found[0]
    return {
        "data": data,
        "rule": rule,
        "rate": rate,
        "val/acc by rate, first seed": tried,
        "val/acc by rate, all seeds": means,
        "test/acc": [result.get("test/acc", 0.0) for result in found],
        "extra_memory_kb": first.get("update/extra_memory_kb"),
        "cycles": {key: value for key, value in first.items() if key.endswith("/train_step_cycles")},
        "images_per_s": first.get("train/images_per_s"),
        "seconds": first.get("seconds"),
        "steps": first.get("steps"),
    }


def runner(root: Path, overrides: Sequence[str], *, jobs: int, progress: Progress) -> Run:
    """Return what runs jobs below `root`, at most `jobs` at a time, and gives their results; {} where one diverged."""
    pool = ThreadPoolExecutor(max_workers=jobs)
    bar = progress.add_task("runs", total=0)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failures: list[str] = []

    def one(job: Job) -> dict[str, Any]:
        # Jobs that wait would each fail in their turn.
        if failures:
            raise FailedError(failures[0])
        folder = root / job.folder
        settings = [*job.settings, *overrides, f"hydra.run.dir={folder}"]
        plain = ["trainer.enable_progress_bar=false", "logger=csv"]
        command = [sys.executable, "-m", "octo_exp", "train", *settings, *plain]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        progress.advance(bar)
        if done.returncode == 0:
            return dict(json.loads((folder / "results.json").read_text()))
        reason = (done.stderr.strip() or "?").splitlines()[-1]
        if "the loss is" in reason or "diverged" in reason:
            return {}
        failures.append(f"{job.folder} failed: {reason.removeprefix('error: ')}")
        raise FailedError(failures[0])

    def run(wanted: Sequence[Job]) -> list[dict[str, Any]]:
        progress.update(bar, total=(progress.tasks[bar].total or 0) + len(wanted))
        return list(pool.map(one, wanted))

    return run


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a row for each data set and rule."""
    seeds = len(rows[0]["test/acc"])
    table = Table(title=f"update rules, test accuracy over {seeds} seed{'' if seeds == 1 else 's'}")
    for column in ("data", "update:optimizer"):
        table.add_column(column)
    profiles = [key.split("/")[1] for key in rows[0]["cycles"]]
    titles = ("learning rate", "test/acc", "extra memory, KB", *(f"cycles a step, {name}" for name in profiles))
    for column in (*titles, "images/s", "steps"):
        table.add_column(column, justify="right")
    for row in rows:
        accuracy = f"{statistics.fmean(row['test/acc']):.3f}"
        accuracy += f" ± {statistics.stdev(row['test/acc']):.3f}" if seeds > 1 else ""
        numbers = [row["extra_memory_kb"], *row["cycles"].values(), row["images_per_s"], row["steps"]]
        patterns = ["{:,.1f}", *["{:,}"] * len(row["cycles"]), "{:,.0f}", "{:,}"]
        shown = ["-" if n is None else p.format(n) for p, n in zip(patterns, numbers, strict=True)]
        table.add_row(row["data"], row["rule"], f"{row['rate']:g}", accuracy, *shown)
    console.print(table)


def _names(rules: str) -> list[str]:
    """Return the rules of --rules; UserError where one is no `update:optimizer`."""
    # It imports torch, for which --help need not wait.
    from octo_exp.graph.train.update.rule import OPTIMIZERS

    updates = sorted(path.stem for path in (conf_folder() / "update").glob("*.yaml"))
    for rule in rules.split(","):
        update, _, optimizer = rule.partition(":")
        if update not in updates:
            raise UserError(f"--rules: {rule!r} has no update of {', '.join(updates)}; write update:optimizer")
        if optimizer not in OPTIMIZERS:
            raise UserError(f"--rules: {rule!r} has no optimizer of {', '.join(OPTIMIZERS)}; write update:optimizer")
    return rules.split(",")


def _rates(rates: str) -> list[float]:
    """Return the rates of --rates; UserError where one is no number above 0."""
    try:
        found = [float(rate) for rate in rates.split(",")]
    except ValueError:
        found = [0.0]
    if not all(0 < rate < math.inf for rate in found):
        raise UserError(f"--rates {rates}: write numbers above 0, by commas, such as {RATES}")
    return found


def _at_least_one(option: str, value: int) -> int:
    if value < 1:
        raise UserError(f"--{option} {value}: write 1 or more")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, print its table, keep it as JSON beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of train.py; data= may name several, by commas")
    parser.add_argument("--rules", default=RULES, help="update:optimizer, by commas")
    parser.add_argument("--rates", default=RATES, help="learning rates to begin with, by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--folder", type=Path, default=Path("outputs/compare_updates"))
    options = parser.parse_intermixed_args(arguments)
    sets = [value for line in options.overrides if line.startswith("data=") for value in line[5:].split(",")]
    others = [line for line in options.overrides if not line.startswith("data=")]
    try:
        rules, rates = _names(options.rules), _rates(options.rates)
        jobs, seeds = _at_least_one("jobs", options.jobs), _at_least_one("seeds", options.seeds)
        with Progress(console=Console(stderr=True, markup=False), transient=True) as progress:
            run = runner(options.folder, others, jobs=jobs, progress=progress)
            rows = study(run, sets=sets or ["flowers5_32"], rules=rules, rates=rates, seeds=range(seeds))
        console = Console(markup=False) if sys.stdout.isatty() else Console(width=200, markup=False)
        show(rows, console)
        path = options.folder / "compare_updates.json"
        write_json(path, {"overrides": others, "rows": rows}, remedy="give another --folder")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    console.print(f"The runs lie in {options.folder}, the figures in {path}.", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
