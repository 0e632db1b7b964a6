"""What a run leaves behind: results.json, written whole or not at all, and the table at the end."""

import contextlib
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import octo_exp
from octo_exp.base.files import write_json

FILE = "results.json"
_PACKAGES = ("torch", "lightning", "torchmetrics", "hydra-core", "wandb", "numpy")


def versions() -> dict[str, str]:
    """Return package -> version of what a number depends on."""
    found = {"octo-exp": octo_exp.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine() -> str:
    """Return the machine's kind: system, processor family, cores."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def write(folder: Path, content: Mapping[str, Any], *, file: str = FILE) -> None:
    """Write results.json, or another file: whole, in strict JSON. UserError as for `write_json`."""
    write_json(folder / file, content)


def say(message: str) -> None:
    """Tell the user one line on stdout, as it is: brackets in it are no markup."""
    Console(soft_wrap=True, markup=False).print(message, highlight=False)


def show(folder: Path, content: Mapping[str, Any]) -> None:
    """Print the run's table: what it reached, what it cost, where it lies and how to view it."""
    table = Table(title=f"{content['model']} on {content['data']}, quant={content['quant']}, seed {content['seed']}")
    table.add_column("what")
    table.add_column("value", justify="right")
    for label, value in _lines(content):
        table.add_row(label, value)
    console = Console(markup=False)
    console.print(table)
    say(f"results: {folder / FILE}")
    if (folder / "wandb").is_dir():
        say(f"view:    wandb leet {folder / 'wandb'}")


def _lines(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    def number(key: str, pattern: str) -> str:
        value = content.get(key)
        return "-" if value is None else pattern.format(value)

    lines = [
        ("test accuracy", number("test/acc", "{:.4f}")),
        *([("  before quantisation", number("float/test/acc", "{:.4f}"))] if "float/test/acc" in content else []),
        ("validation accuracy", number("val/acc", "{:.4f}")),
        ("images/s in training", number("train/images_per_s", "{:,.0f}")),
        ("saved for backward, MiB", number("memory/saved_for_backward_mib", "{:,.1f}")),
        ("peak memory, MiB", number("memory/peak_mib", "{:,.0f}")),
    ]
    if content.get("update"):
        lines.append(("update", f"{content['update']} ({content['update/optimizer']})"))
        lines.append(("  memory beside the forward pass, KB", number("update/extra_memory_kb", "{:,.3f}")))
    for key in content:
        if key.endswith("/train_step_cycles"):
            profile = key.split("/")[1]
            parts = [number(f"cost/{profile}/{p}_cycles", "{:,}") for p in ("forward", "grad_input", "grad_weight")]
            lines.append((f"cycles a step, {profile}", f"{content[key]:,}"))
            lines.append(("  forward / grad_input / grad_weight", " / ".join(parts)))
            if content.get("cost/convention") == "exact":
                lines.append(("  with stalls and vector work", number(f"cost/{profile}/total_cycles", "{:,}")))
            if f"cost/{profile}/energy_uj" in content:
                energy = content[f"cost/{profile}/energy_uj"] / 1e3
                lines.append((f"  energy, mJ ({content['cost/energy_table']})", f"{energy:,.1f}"))
    if "cost/convention" in content:
        lines.append(("  counted as", f"{content['cost/convention']}, {content['cost/grad_input_form']}"))
    if "cost/peak_memory_mib" in content:
        lines.append(("memory of a step by liveness, MiB", number("cost/peak_memory_mib", "{:,.1f}")))
    return [*lines, ("seconds", number("seconds", "{:.1f}"))]
