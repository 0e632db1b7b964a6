"""One table of a sweep: `python -m sweeps.summary FOLDER`; with -m it also ends every `python train.py -m`."""

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octo_exp.base.errors import UserError
from octo_exp.base.files import write_text
from octo_exp.runs.sweep.jobs import NAMES, SETTING, read_failures, read_runs, read_unfinished

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = dict[str, Any]

# Wide enough that nothing is cut where the output is a file or a pipe.
_FILE_WIDTH = 1000


def _decimals(places: int) -> Callable[[Any], str]:
    return lambda value: f"{value:,.{places}f}"


_METRICS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "test/acc": ("test/acc", _decimals(3)),
    "float/test/acc": ("before quantisation", _decimals(3)),
    "val/acc": ("val/acc", _decimals(3)),
    "update/extra_memory_kb": ("extra memory, KB", _decimals(1)),
    "memory/saved_for_backward_mib": ("saved for backward, MiB", _decimals(2)),
    "memory/peak_mib": ("peak, MiB", _decimals(1)),
    "train/images_per_s": ("images/s", _decimals(0)),
    "seconds": ("seconds", _decimals(1)),
}


def summary_table(rows: Sequence[Row]) -> "Table":
    """Returns one line a job: what tells the jobs apart, then accuracy, cycles of each profile, memory and speed."""
    from rich.table import Table

    table = Table(title=f"{len(rows)} job{'' if len(rows) == 1 else 's'}")
    table.add_column("job")
    names = _telling(rows)
    for name in names:
        table.add_column(name.removeprefix(SETTING), overflow="fold")
    metrics = _metrics(rows)
    for title, _ in metrics.values():
        table.add_column(title, justify="right")
    for row in rows:
        told = [str(row["job"]), *(_text(row.get(name)) for name in names)]
        measured = [show(row[key]) if _is_number(row.get(key)) else "-" for key, (_, show) in metrics.items()]
        table.add_row(*told, *measured)
    return table


def transfer_tables(rows: Sequence[Row]) -> list["Table"]:
    """Returns, for each model and scheme, test accuracy by source (rows) and target (columns), the mean over seeds.

    The diagonal, source = target, was trained from nothing. Rows without a source are left out.
    """
    from rich.table import Table

    moved = [row for row in rows if row.get("source") and _is_number(row.get("test/acc"))]
    tables = []
    for model, quant in _distinct((row.get("model"), row.get("quant")) for row in moved):
        block = [row for row in moved if (row.get("model"), row.get("quant")) == (model, quant)]
        targets = _distinct(row.get("data") for row in block)
        table = Table(title=f"transfer, test/acc: {model}, {quant}", caption="source = target: from nothing")
        table.add_column("source")
        for target in targets:
            table.add_column(f"-> {target}", justify="right")
        for source in _distinct(row["source"] for row in block):
            table.add_row(str(source), *(_mean_accuracy(block, source, target) for target in targets))
        tables.append(table)
    return tables


def update_tables(rows: Sequence[Row]) -> list["Table"]:
    """Returns, for each model, test accuracy by update rule and optimizer (rows) and data set (columns), over seeds.

    Settings that differ among the runs belong to the rule: only seeds are averaged. Beside the rule stand the memory
    that it needs beyond the forward pass, the cycles of a step and the seconds of a run, averages over its runs.
    """
    from rich.table import Table

    trained = [row for row in rows if row.get("update") and _is_number(row.get("test/acc"))]
    settings = _rule_settings(trained)
    if len({_rule(row, settings) for row in trained}) < 2:
        return []
    tables = []
    for model in _distinct(row.get("model") for row in trained):
        block = [row for row in trained if row.get("model") == model]
        sets = _distinct(row.get("data") for row in block)
        cycles = _cycle_keys(block)
        columns = {"update/extra_memory_kb": 1, **dict.fromkeys(cycles, 0), "seconds": 0}
        table = Table(title=f"update rules, test/acc: {model}")
        for column in ("update", "optimizer"):
            table.add_column(column)
        for title in ("extra memory, KB", *(_cycle_title(key) for key in cycles), "seconds", *map(str, sets)):
            table.add_column(title, justify="right")
        for rule in _distinct(_rule(row, settings) for row in block):
            same = [row for row in block if _rule(row, settings) == rule]
            facts = [_average(same, key, places) for key, places in columns.items()]
            reached = [_mean([row["test/acc"] for row in same if row.get("data") == name]) for name in sets]
            table.add_row(*rule, *facts, *reached)
        tables.append(table)
    return tables


def _rule_settings(rows: Sequence[Row]) -> list[str]:
    """Returns what tells rules apart beside their names: what varies but seed, data set, model and folders."""
    known = ("data", "model", "update", "seed", f"{SETTING}update.optimizer")
    return [name for name in _telling(rows) if name not in known and not name.startswith(f"{SETTING}hydra.")]


def _rule(row: Row, settings: Sequence[str]) -> tuple[str, str]:
    """Returns a run's rule with its settings, such as `sparse budget_kb=50`, and its optimizer."""
    given = [(name, row[name]) for name in settings if row.get(name) is not None]
    told = [f"{name.removeprefix(SETTING).removeprefix('update.')}={value}" for name, value in given]
    return " ".join([str(row["update"]), *told]), _text(row.get("update/optimizer"))


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes every key of every row, names first; UserError where `path` cannot be written."""
    first = ["job", *NAMES]
    keys = _distinct(key for row in rows for key in row)
    fields = [key for key in first if key in keys] + sorted(set(keys) - set(first))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def report(folder: str | Path, console: "Console | None" = None) -> int:
    """Prints the tables and the failures of a folder, writes summary.csv into it; returns how many jobs failed.

    UserError, after all of it is printed, where summary.csv cannot be written.
    """
    root = Path(folder)
    rows, failures, unfinished = read_runs(root), read_failures(root), read_unfinished(root)
    console = console or _console()
    if rows:
        _print_tables(rows, root, console)
    elif not failures and not unfinished:
        _say(console, f"{root} holds no results.json: no job has finished there.")
    for failure in failures:
        settings = " ".join(map(str, failure.get("overrides", [])))
        _say(console, f"failed: job {failure['job']} ({settings}): {failure.get('error')}", style="red")
    for job in unfinished:
        _say(console, f"not finished: job {job}: started again, it goes on", style="yellow")
    if rows:
        # Last: on a full disk the tables are there all the same.
        write_csv(rows, root / "summary.csv")
        _say(console, f"The runs lie in {root}, the table in {root / 'summary.csv'}.")
    return len(failures)


def _print_tables(rows: Sequence[Row], root: Path, console: "Console") -> None:
    console.print(summary_table(rows))
    for table in (*transfer_tables(rows), *update_tables(rows)):
        console.print(table)
    tracked = next((folder for folder in (root / row["job"] / "wandb" for row in rows) if folder.is_dir()), None)
    if tracked is not None:
        _say(console, f"W&B: `wandb leet {tracked}` shows a run here, `wandb sync` uploads it.")


def _say(console: "Console", text: str, style: str | None = None) -> None:
    """Prints text as it is: brackets in it are no markup."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _telling(rows: Sequence[Row]) -> list[str]:
    """Returns the names and settings that differ among the rows; where none does, the names alone."""
    settings = _distinct(key for row in rows for key in row if key.startswith(SETTING))
    varying = [name for name in (*NAMES, *settings) if len({_text(row.get(name)) for row in rows}) > 1]
    return varying or [name for name in NAMES if any(row.get(name) is not None for row in rows)]


def _metrics(rows: Sequence[Row]) -> dict[str, tuple[str, Callable[[Any], str]]]:
    keys = _distinct(key for row in rows for key in row)
    cycles = _cycle_keys(rows)
    columns = {key: _METRICS[key] for key in ("test/acc", "float/test/acc", "val/acc")}
    columns |= {key: (_cycle_title(key), _decimals(0)) for key in cycles}
    columns |= _METRICS
    return {key: column for key, column in columns.items() if key in keys}


def _cycle_keys(rows: Sequence[Row]) -> list[str]:
    keys = _distinct(key for row in rows for key in row)
    return [key for key in keys if key.startswith("cost/") and key.endswith("/train_step_cycles")]


def _cycle_title(key: str) -> str:
    return f"train step cycles, {key.split('/')[1]}"


def _average(rows: Sequence[Row], key: str, places: int) -> str:
    found = [row[key] for row in rows if _is_number(row.get(key))]
    return _decimals(places)(statistics.fmean(found)) if found else "-"


def _mean_accuracy(rows: Sequence[Row], source: object, target: object) -> str:
    return _mean([row["test/acc"] for row in rows if (row["source"], row.get("data")) == (source, target)])


def _mean(found: Sequence[float]) -> str:
    """Returns the mean, with the standard deviation where there are several."""
    if not found:
        return "-"
    mean = f"{statistics.fmean(found):.3f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.3f}"


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _console() -> "Console":
    from rich.console import Console

    return Console(markup=False) if sys.stdout.isatty() else Console(width=_FILE_WIDTH, markup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Reports on one folder; returns 1 where a job of it failed."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.summary", description="Prints the table of a sweep.")
    parser.add_argument("folder", help="the folder of a sweep: multirun/DATE/TIME")
    try:
        return 1 if report(parser.parse_args(arguments).folder) else 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
