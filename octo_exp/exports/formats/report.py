"""format=report: what quantisation saves, layer by layer: size, cycles on a profile, memory while a layer runs.

Before is the float network with its norms folded, after the int8 graph. Size: 4 bytes a weight and bias before; a byte
a weight, and of each channel bias, multiplier and shift (9 bytes) after. Memory: the tensors that are alive while the
layer runs, one image. Cycles: GEMM, work beside it and stalls on the profile of hw=, see `integers.inference`.
"""

import csv
from pathlib import Path
from typing import Any

from rich.table import Table

from octo_exp.base.errors import UserError
from octo_exp.base.files import write_csv
from octo_exp.exports.request import profile_of
from octo_exp.exports.subject import Graph
from octo_exp.graph.integers.inference import inference_workload
from octo_exp.graph.operations import Step, steps_of
from octo_exp.graph.parts import ConvSpec
from octo_exp.graph.spec import ModelSpec
from octo_exp.hw import HardwareProfile, step_memory, training_step_cost
from octo_exp.runs.cost_plots import layer_parts, save_compression_figure

SUFFIX = ".csv"
DEFAULT_PROFILE = "systolic_32x32"
FLOAT_BYTES = 4
# Bias, multiplier: int32; shift: a byte.
CHANNEL_BYTES = 9
PAIRS = ("size_bytes", "cycles", "memory_bytes")
WHEN = ("before", "after")
COLUMNS = ("layer", "makes", "parameters", "macs", *(f"{name}_{when}" for name in PAIRS for when in WHEN))

Row = dict[str, Any]


def write(graph: Graph, folder: Path, name: str) -> dict[str, Any]:
    """Write the table as .csv and its picture as .png; return the totals.

    UserError where the profile multiplies no int8, or is too small for a number.
    """
    profile = graph.profile or profile_of(DEFAULT_PROFILE)
    rows = rows_of(graph.spec, profile)
    write_csv(folder / f"{name}{SUFFIX}", [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)])
    save_compression_figure(folder / f"{name}.png", rows, PAIRS, title=f"{name} on {profile.name}")
    total = rows[-1]
    facts: dict[str, Any] = {"profile": profile.name}
    for key in PAIRS:
        before, after = total[f"{key}_before"], total[f"{key}_after"]
        facts |= {f"{key}_before": before, f"{key}_after": after}
        facts[f"{key.removesuffix('_bytes')}_ratio"] = None if before is None else after / before
    return facts


def rows_of(spec: ModelSpec, profile: HardwareProfile) -> list[Row]:
    """Return a row a step, and the last one their total: sums, and of memory the peak."""
    steps = steps_of(spec)
    after = _cycles(spec, profile, integers=True)
    try:
        before = _cycles(spec, profile, integers=False)
    except UserError:
        # A machine of integers alone has no price for floats.
        before = {}
    live = [step_memory(inference_workload(spec, integers=integers).buffers).live_bytes for integers in (False, True)]
    rows = [
        {
            "layer": step.name,
            "makes": f"{step.gives.channels}x{step.gives.size}x{step.gives.size}",
            "parameters": step.params,
            "macs": step.macs,
            "size_bytes_before": FLOAT_BYTES * step.params,
            "size_bytes_after": _size(step),
            "cycles_before": before.get(step.name),
            "cycles_after": after.get(step.name),
            "memory_bytes_before": live[0][k],
            "memory_bytes_after": live[1][k],
        }
        for k, step in enumerate(steps)
    ]
    return [*rows, _total(rows)]


def _size(step: Step) -> int:
    conv = step.part
    return conv.weight.size + CHANNEL_BYTES * conv.bias.size if isinstance(conv, ConvSpec) else 0


def _cycles(spec: ModelSpec, profile: HardwareProfile, *, integers: bool) -> dict[str, int]:
    report = training_step_cost(inference_workload(spec, integers=integers), profile, convention="exact")
    return {layer: sum(parts.values()) for layer, parts in layer_parts(report).items()}


def _total(rows: list[Row]) -> Row:
    total: Row = {"layer": "total", "makes": ""}
    for column in COLUMNS[2:]:
        values = [row[column] for row in rows]
        gather = max if column.startswith("memory") else sum
        total[column] = None if None in values else gather(values)
    return total


def table(path: Path) -> Table:
    """Return a report's file as a table for the terminal."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = Table(title=f"{path.stem}: before / after")
    for column in ("layer", "makes", "parameters", "MACs"):
        shown.add_column(column, justify="left" if column in ("layer", "makes") else "right")
    for column in ("size, KiB", "cycles", "memory, KiB"):
        shown.add_column(column, justify="right")
    for row in rows:
        pairs = [(row[f"{key}_before"], row[f"{key}_after"]) for key in PAIRS]
        texts = [_pair(*pair, kib=key.endswith("bytes")) for key, pair in zip(PAIRS, pairs, strict=True)]
        counts = [f"{int(row[key]):,}" for key in ("parameters", "macs")]
        shown.add_row(row["layer"], row["makes"], *counts, *texts, end_section=row is rows[-2])
    return shown


def _pair(before: str, after: str, *, kib: bool) -> str:
    texts = ["-" if not v else f"{int(v) / 1024:,.1f}" if kib else f"{int(v):,}" for v in (before, after)]
    return " / ".join(texts)
