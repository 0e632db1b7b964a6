"""The command line that benchmarks share: threads, rounds, one line for a user's mistake, a table, JSON."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from octo_exp.base.errors import UserError
from octo_exp.base.files import write_text


def parser_of(doc: str | None, *, threads: int | None = None, rounds: int = 20) -> argparse.ArgumentParser:
    """Return a parser of settings of train.py, --threads (None: torch's own number), --rounds and --json."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of train.py: model=vgg11 data=cifar10 ...")
    parser.add_argument("--threads", type=int, default=threads or torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, help="a file for everything that was measured")
    return parser


def batch_sizes(text: str) -> list[int]:
    """Return the sizes of a list such as 1,64; what is none ends the command line with code 2."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of batch sizes; write --batches 1,64")
    return [int(part) for part in parts]


def failed(error: UserError) -> int:
    """Say what is wrong; return the exit code."""
    Console(stderr=True, markup=False).print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
    return error.exit_code


def report(
    options: argparse.Namespace, measure: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any], Console], None]
) -> int:
    """Measure on the threads that were asked for, print, keep the JSON where asked; return the exit code."""
    torch.set_num_threads(options.threads)
    try:
        result = measure()
    except UserError as error:
        return failed(error)
    console = Console(markup=False)
    show(result, console if console.is_terminal else Console(width=120, markup=False))
    if options.json is not None:
        return keep(options.json, result)
    return 0


def keep(path: Path, result: dict[str, Any]) -> int:
    """Write what was measured as JSON; return the exit code."""
    try:
        write_text(path, json.dumps(result, indent=1), remedy="give another --json")
    except UserError as error:
        return failed(error)
    return 0
