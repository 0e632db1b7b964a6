"""How near the searches of machines come to the best one, for a tenth of the prices: genetic, random, Optuna's NSGA-II.

    python -m sweeps.compare_searches model=lenet5

Every method gets the same budget and the same seeds; the best design is known from pricing all of them. Overrides are
those of `sweeps/dse.py`, whose first objective counts; by default batch 4, arrays up to 128 x 128 of at most 4,096 PEs.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import track
from rich.table import Table

from octo_exp.base.errors import UserError
from octo_exp.bench.command import keep
from octo_exp.bench.subjects import CONF
from octo_exp.cli.dse.nsga2 import Nsga2
from octo_exp.cli.dse.search import build_problem
from octo_exp.hw.search.genetic import Genetic
from octo_exp.hw.search.scan import Problem, Scan, Search, drive

SPACE = "++space={rows:{from:1,to:128},cols:{from:1,to:128},dataflow:[os,ws,is]}"
DEFAULTS = ("data.batch_size=4", "quant.skip=[]", "constraints.processing_elements={max:4096}")
METHODS = ("genetic", "random", "nsga2")
# What counts as found: so near to the best.
NEAR = 0.01
# Points that are kept beside the best ones: none is looked at.
_KEPT = 1


def measure(overrides: Sequence[str], *, methods: Sequence[str], seeds: int, share: float) -> dict[str, Any]:
    """Return for each method how many seeds came within 1 % of the best, prices paid, the worst gap, and seconds."""
    problem = build_problem(_config(overrides))
    feasible = len(problem.space)
    budget = max(1, int(share * feasible))
    start = time.perf_counter()
    best = _best(Scan(problem, sample=None, seed=0, limit=_KEPT, top=1))[0]
    result: dict[str, Any] = {
        "overrides": list(overrides),
        "objective": problem.objectives.chosen[0].name,
        "feasible": feasible,
        "gemms": len(problem.objectives.workload.gemms),
        "budget": budget,
        "seeds": seeds,
        "exhaustive_s": time.perf_counter() - start,
        "methods": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        makers = _makers(problem, budget, Path(folder))
        jobs = [(method, seed) for method in methods for seed in range(seeds)]
        runs: dict[str, list[tuple[float, int, float]]] = {method: [] for method in methods}
        for method, seed in track(
            jobs, description="searching", console=Console(stderr=True, markup=False), transient=True
        ):
            start = time.perf_counter()
            found, priced = _best(makers[method](seed))
            runs[method].append((abs(found - best) / abs(best), priced, time.perf_counter() - start))
    for method, each in runs.items():
        gaps, priced_points, seconds = zip(*each, strict=True)
        result["methods"][method] = {
            "near": sum(gap <= NEAR for gap in gaps),
            "exact": sum(gap == 0 for gap in gaps),
            "distinct": statistics.fmean(priced_points),
            "worst_gap": max(gaps),
            "seconds": statistics.median(seconds),
        }
    return result


def _config(overrides: Sequence[str]) -> DictConfig:
    # A space of the user's would be merged with ours, axis by axis; its axes are new to the yaml, hence the plus signs.
    given = [f"++{line}" if line.startswith("space") else line for line in overrides]
    space = [] if any(line.startswith("++space") for line in given) else [SPACE]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("dse", [*DEFAULTS, *space, *given])
    except (HydraException, OmegaConfBaseException) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{reason}; `python sweeps/dse.py --help` lists what can be chosen") from error


def _makers(problem: Problem, budget: int, folder: Path) -> dict[str, Callable[[int], Search]]:
    return {
        "genetic": lambda seed: Genetic(problem, budget=budget, seed=seed),
        "random": lambda seed: Scan(problem, sample=budget, seed=seed, limit=budget, top=1),
        "nsga2": lambda seed: Nsga2(problem, budget=budget, seed=seed, folder=folder),
    }


def _best(search: Search) -> tuple[float, int]:
    """Lowest first cost, and the number of distinct feasible designs that were priced."""
    archive = drive(search)
    return float(archive.costs[:, 0].min()), archive.evaluated


def show(result: dict[str, Any], console: Console) -> None:
    """Print a row a method."""
    space = f"{result['feasible']:,} feasible designs, {result['gemms']} GEMMs, {result['objective']}"
    table = Table(
        title=f"{' '.join(result['overrides'])}: {space}, a budget of {result['budget']:,}",
        caption=f"all: {result['exhaustive_s']:.2f} s. nsga2's budget counts repeated and infeasible designs too",
    )
    table.add_column("method")
    for column in ("within 1 %", "exact", "distinct designs priced", "worst gap", "s"):
        table.add_column(column, justify="right")
    for method, row in result["methods"].items():
        counts = [f"{row[key]}/{result['seeds']}" for key in ("near", "exact")]
        table.add_row(method, *counts, f"{row['distinct']:,.0f}", f"{row['worst_gap']:.2%}", f"{row['seconds']:.2f}")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and keep the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", help="model=vgg11 data=cifar10 constraints.processing_elements.max=1024"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; nsga2 needs Optuna")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.1, help="budget as a share of the feasible designs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_intermixed_args(arguments)
    methods = options.methods.split(",")
    try:
        for method in methods:
            if method not in METHODS:
                raise UserError(f"unknown method {method!r}: choose among {', '.join(METHODS)}")
        if options.seeds < 1 or not 0 < options.share <= 1:
            raise UserError("--seeds must be at least 1 and --share in 0..1")
        result = measure(options.overrides, methods=methods, seeds=options.seeds, share=options.share)
    except UserError as error:
        Console(stderr=True, markup=False).print(f"error: {error}", style="red", highlight=False)
        return error.exit_code
    show(result, Console(markup=False))
    if options.json is not None:
        return keep(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
