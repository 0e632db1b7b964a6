"""What a search of machines leaves behind: CSV files, dse.json, a plot, files for SCALE-Sim, and a table."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from octo_exp.base.errors import UserError
from octo_exp.base.files import write_csv, write_json
from octo_exp.base.homes import settle_matplotlib
from octo_exp.hw.scalesim import write_config, write_topology

if TYPE_CHECKING:
    from octo_exp.hw.search.archive import Archive
    from octo_exp.hw.search.scan import Problem

FILE = "dse.json"
# Wide enough that nothing is cut where the output is a file or a pipe.
_FILE_WIDTH = 1000
_PERCENT = ("utilization",)


def read(folder: Path) -> dict[str, Any] | None:
    """Return the content of dse.json, None where the search has not finished."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another folder, or delete it") from error
    return content


def write(
    folder: Path,
    problem: "Problem",
    archive: "Archive",
    *,
    config: Mapping[str, Any],
    names: Mapping[str, str],
    seconds: float,
) -> dict[str, Any]:
    """Write all files, dse.json last; return its content."""
    settle_matplotlib()
    # Matplotlib takes a while to import.
    from octo_exp.cli.dse.plot import draw

    best, front = archive.best(archive.limit), archive.front()
    if not archive.is_complete:
        best = archive.best(config["top"])
    write_csv(folder / "points.csv", _table(problem.columns(best)))
    write_csv(folder / "pareto.csv", _table(problem.columns(front)))
    notes = _write_scalesim(folder, problem, int(best.points[0]))
    draw(folder / "pareto.png", problem, archive, front)
    content = {
        **names,
        "method": config["search"]["method"],
        "seed": config["search"]["seed"],
        "convention": config["convention"],
        "base": problem.space.base.name,
        "batch_size": problem.objectives.workload.batch_size,
        "objectives": [objective.name for objective in problem.objectives.chosen],
        "designs": problem.space.size,
        "feasible": len(problem.space),
        "priced": archive.evaluated,
        "seconds": seconds,
        "best": _rows(problem.columns(archive.best(config["top"]))),
        "front": _rows(problem.columns(front)),
        "notes": notes,
        "config": config,
    }
    write_json(folder / FILE, content)
    return content


def show(folder: Path, content: Mapping[str, Any]) -> None:
    """Print the best designs (of several objectives the front) and name the files."""
    several = len(content["objectives"]) > 1
    rows = _spread(content["front"], content["config"]["top"]) if several else content["best"]
    front = f"{len(rows):,} of {len(content['front']):,} designs on the Pareto front"
    table = Table()
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    for row in rows:
        table.add_row(*[_text(name, value) for name, value in row.items()])
    subject = f"{content['model']} on {content['data']}, quant={content['quant']}, batch {content['batch_size']}"
    say(f"{subject}: {front if several else 'best designs'}")
    console = Console(markup=False)
    (console if console.is_terminal else Console(width=_FILE_WIDTH, markup=False)).print(table)
    say(
        f"{content['method']} search: {content['priced']:,} of {content['feasible']:,} feasible designs in "
        f"{content['seconds']:.2f} s; counted as {content['convention']}, {content['config']['grad_input_form']}"
    )
    for note in content["notes"]:
        say(note)
    files = ("points.csv", "pareto.csv", FILE, "pareto.png", "best.cfg", "gemms.csv")
    say(f"{folder} holds {', '.join(name for name in files if (folder / name).exists())}")


def say(message: str) -> None:
    """Tell the user one line on stdout."""
    Console(soft_wrap=True, markup=False).print(message, highlight=False)


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name in _PERCENT:
        return f"{value:.1%}"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` rows, evenly from the first to the last."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[place] for place in places]


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _table(columns: Mapping[str, list[Any]]) -> Iterator[Sequence[Any]]:
    return itertools.chain([tuple(columns)], zip(*columns.values(), strict=True))


def _write_scalesim(folder: Path, problem: "Problem", point: int) -> list[str]:
    """Write the best design and the GEMMs as SCALE-Sim takes them; return what it cannot take, a line each."""
    profile = problem.space.profile(point, name=f"{problem.space.base.name}_best")
    notes = []
    jobs: dict[str, Callable[[Path], object]] = {
        "best.cfg": lambda path: write_config(profile, path),
        "gemms.csv": lambda path: write_topology(problem.objectives.workload, path),
    }
    for name, job in jobs.items():
        try:
            job(folder / name)
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            notes.append(f"no {name}: {error}")
    return notes
