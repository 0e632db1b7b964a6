"""One training step (forward, backward, SGD) of a network, side by side: fp32, bf16, compiled, and int8.

    python -m octo_exp.bench.train_step model=vgg11 data=cifar10 --quant int8,octo

The subjects take turns in one process; medians, and the spread of the ratios within a round. Beside them the bytes kept
for the backward pass and the growth of the resident set in one step, each in a process of its own. `--json FILE` keeps
it all.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from octo_exp.base.errors import UserError
from octo_exp.bench import twin
from octo_exp.bench.command import parser_of, report
from octo_exp.bench.gate import check_same_step, gradients
from octo_exp.bench.measure import alternate, cpu_seconds, describe, machine, pairwise_ratio
from octo_exp.bench.memory import measure_growth, saved_mib
from octo_exp.bench.subjects import FLOATS, OPTIONAL, PLAIN, Subject, build, precisions


def measure(
    floats: Sequence[str],
    schemes: Sequence[str],
    overrides: Sequence[str],
    *,
    batch_size: int,
    rounds: int,
    growth: bool,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return what was measured: times, ratios of every float over every scheme, memory, precisions, machine."""
    built: list[Subject] = []
    absent: dict[str, str] = {}
    for name in dict.fromkeys(("fp32", *floats, *schemes)):
        try:
            subject = build(name, overrides, batch_size=batch_size, device=device)
            if name in OPTIONAL:
                gradients(subject)
            built.append(subject)
        except (UserError, ImportError, RuntimeError) as error:
            # An optional package or a compiler: its row says so. Schemes are what is measured, so they must run.
            if name not in OPTIONAL:
                raise
            absent[name] = str(error).strip().splitlines()[0]
    check_same_step(built)
    for scheme in schemes:
        twin.check(build(scheme, overrides, batch_size=4, device=device))
    times = alternate({subject.name: subject.step for subject in built}, warmup=3, rounds=rounds)
    names = [subject.name for subject in built]
    result: dict[str, Any] = {
        "overrides": list(overrides),
        "batch": batch_size,
        "rounds": rounds,
        "machine": machine(),
        "absent": absent,
        "milliseconds": {name: statistics.median(values) for name, values in times.items()},
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "ratios": {
            scheme: {name: pairwise_ratio(times, name, scheme) for name in names if name != scheme}
            for scheme in schemes
        },
        "cpu_seconds": {subject.name: cpu_seconds(subject.step, repeats=min(5, rounds)) for subject in built},
        # Compiled graphs and tensor subclasses keep their own books.
        "saved_mib": {subject.name: saved_mib(subject) for subject in built if subject.name not in OPTIONAL},
        "precisions": {scheme: precisions(built[names.index(scheme)]) for scheme in schemes},
    }
    if growth:
        counted = ["fp32", *schemes]
        result["growth_mib"] = {
            name: measure_growth(name, overrides, batch_size=batch_size, threads=torch.get_num_threads())
            for name in track(
                counted, description="peak memory", console=Console(stderr=True, markup=False), transient=True
            )
        }
    return result


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the table: a row a subject, a column a scheme with the ratio of the row's time over the scheme's."""
    schemes = list(result["ratios"])
    title = f"{' '.join(result['overrides'])}, batch {result['batch']}: forward + backward + SGD"
    table = Table(title=title, caption=describe(result["machine"]))
    for column in ("subject", "ms", "CPU s", *[f"/ {s}" for s in schemes], "kept for backward, MiB", "growth, MiB"):
        table.add_column(column, justify="left" if column == "subject" else "right")
    for name, ms in result["milliseconds"].items():
        ratios = [_ratio(result["ratios"][s].get(name)) for s in schemes]
        grown = result.get("growth_mib", {}).get(name)
        table.add_row(
            name,
            f"{ms:.1f}",
            f"{result['cpu_seconds'][name]:.3f}",
            *ratios,
            f"{result['saved_mib'][name]:.1f}" if name in result["saved_mib"] else "",
            "" if grown is None else f"{grown:.0f}",
        )
    for name, reason in result["absent"].items():
        table.add_row(name, "-", "", *["" for _ in schemes], "", reason)
    console.print(table)
    for scheme in schemes:
        kept = {n: p for n, p in result["precisions"][scheme].items() if p != "int8"}
        console.print(
            f"{scheme}: not int8: {', '.join(f'{n} {p}' for n, p in kept.items()) or 'nothing'}", highlight=False
        )


def _ratio(ratio: Mapping[str, float] | None) -> str:
    return "" if ratio is None else f"{ratio['ratio']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and keep the JSON where asked."""
    parser = parser_of(__doc__)
    parser.add_argument("--quant", default="int8", help="schemes to measure, comma-separated")
    parser.add_argument("--subjects", default=",".join(PLAIN), help=f"of {', '.join(FLOATS)}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--no-growth", action="store_true", help="leave out the peak memory, a process a subject")
    options = parser.parse_intermixed_args(arguments)
    subjects = [name for name in options.subjects.split(",") if name]
    settings = {
        "batch_size": options.batch,
        "rounds": options.rounds,
        "growth": not options.no_growth and options.device == "cpu" and sys.platform == "linux",
        "device": options.device,
    }
    return report(options, lambda: measure(subjects, options.quant.split(","), options.overrides, **settings), show)


if __name__ == "__main__":
    sys.exit(main())
