"""Pictures and tables of what a training step costs. matplotlib is imported where a figure is made."""

import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from octo_exp.base.files import make_folder_of, whole_file
from octo_exp.base.homes import settle_matplotlib
from octo_exp.hw import CostReport, MemoryReport
from octo_exp.workload import ROLES

# Readable for the color blind (Okabe and Ito): the three roles, the vector unit, waiting.
COLORS = {
    "output": "#0072B2",
    "grad_input": "#E69F00",
    "grad_weight": "#009E73",
    "vector": "#CC79A7",
    "stall": "#BBBBBB",
}
PARTS = (*ROLES, "vector", "stall")
_KIND_COLORS = {
    "weight": "#0072B2",
    "activation": "#E69F00",
    "mask": "#F0E442",
    "gradient": "#009E73",
    "optimizer": "#CC79A7",
    "workspace": "#BBBBBB",
}
MIB = 2**20
_BAR = 24
_COLUMNS = 3
# Bars in a panel; the smallest of a deeper network share one.
_SHOWN = 24
_REMEDY = "choose another output folder"


def layer_parts(report: CostReport) -> dict[str, dict[str, int]]:
    """layer -> cycles of each of PARTS, in the order of the network."""
    found: dict[str, dict[str, int]] = {row.layer: dict.fromkeys(PARTS, 0) for row in report.rows}
    for row in report.rows:
        found[row.layer][row.role] += row.cycles
        found[row.layer]["stall"] += row.stall_cycles
    for work in report.vector_rows:
        parts = found.setdefault(work.layer, dict.fromkeys(PARTS, 0))
        parts["vector"] += work.cycles or 0
        parts["stall"] += work.stall_cycles or 0
    return found


def cost_table(report: CostReport) -> Table:
    """A line for each layer: cycles of each role, of the vector unit and of waiting, and a bar of their sum."""
    layers = layer_parts(report)
    largest = max((sum(parts.values()) for parts in layers.values()), default=1) or 1
    table = Table(title=f"cycles of a training step on {report.profile}, {report.convention}, {report.grad_input_form}")
    table.add_column("layer")
    for part in PARTS:
        table.add_column(part, justify="right")
    table.add_column("")
    for layer, parts in layers.items():
        bar = "█" * math.ceil(_BAR * sum(parts.values()) / largest)
        table.add_row(layer or "(net)", *(f"{parts[part]:,}" for part in PARTS), bar)
    table.add_section()
    table.add_row("total", *(f"{sum(parts[part] for parts in layers.values()):,}" for part in PARTS), "")
    return table


def text_of(table: Table) -> str:
    """The table as plain text, for a log file."""
    file = StringIO()
    Console(file=file, width=140, color_system=None, markup=False).print(table)
    return file.getvalue()


def save_cost_figure(path: Path, reports: Mapping[str, CostReport], memory: MemoryReport | None) -> None:
    """Draw a panel of stacked bars for each profile, a bar a layer, and one of the memory; write it as PNG.

    Raises:
        UserError: the file cannot be written.

    """
    settle_matplotlib()
    from matplotlib.figure import Figure

    panels = len(reports) + (memory is not None)
    columns = min(panels, _COLUMNS)
    lines = math.ceil(panels / columns)
    layers = max(len(_largest(layer_parts(report))) for report in reports.values())
    figure = Figure(figsize=(5.6 * columns, lines * (1.6 + 0.26 * layers)), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (name, report) in zip(axes, reports.items(), strict=False):
        _draw_layers(axis, name, report)
    if memory is not None:
        _draw_memory(axes[len(reports)], memory)
    for axis in axes[panels:]:
        axis.set_visible(False)
    make_folder_of(path, remedy=_REMEDY)
    _save(figure, path, dpi=110)


def _save(figure: Any, path: Path, *, dpi: int) -> None:
    with whole_file(path, remedy=_REMEDY) as file:
        figure.savefig(file, dpi=dpi, format="png")


def _largest(layers: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The layers that cost most, in the network's order, and the rest as one."""
    if len(layers) <= _SHOWN:
        return layers
    costs = sorted((sum(parts.values()) for parts in layers.values()), reverse=True)
    shown = {layer: parts for layer, parts in layers.items() if sum(parts.values()) > costs[_SHOWN]}
    rest = [parts for layer, parts in layers.items() if layer not in shown]
    return {**shown, f"({len(rest)} others)": {part: sum(parts[part] for parts in rest) for part in PARTS}}


def _draw_layers(axis: Any, name: str, report: CostReport) -> None:
    layers = _largest(layer_parts(report))
    names = [layer or "(net)" for layer in layers]
    left = [0.0] * len(names)
    for part in PARTS:
        widths = [parts[part] / 1e6 for parts in layers.values()]
        if any(widths):
            axis.barh(names, widths, left=left, color=COLORS[part], label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("million cycles a training step")
    total = sum(sum(parts.values()) for parts in layers.values())
    axis.set_title(f"{name}: {total / 1e6:,.2f} M cycles ({report.convention}, {report.grad_input_form})")
    axis.legend(fontsize="small", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_memory(axis: Any, memory: MemoryReport) -> None:
    """Live bytes over the events of the step, by kind."""
    curves = {kind: curve for kind, curve in memory.live_by_kind.items() if any(curve)}
    values = [[size / MIB for size in curve] for curve in curves.values()]
    colors = [_KIND_COLORS[kind] for kind in curves]
    axis.stackplot(range(len(memory.live_bytes)), values, labels=list(curves), colors=colors, step="mid")
    axis.set_ylim(0, 1.25 * memory.peak_bytes / MIB)
    axis.margins(x=0)
    axis.set_xlabel("event of the step: forward, backward, update")
    axis.set_ylabel("MiB")
    axis.set_title(f"memory of a training step: peak {memory.peak_bytes / MIB:,.1f} MiB")
    axis.legend(fontsize="small", frameon=False, ncols=3, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)


def save_compression_figure(path: Path, rows: Sequence[Mapping[str, Any]], pairs: Sequence[str], *, title: str) -> None:
    """A panel for each quantity of `pairs`, with a bar for each layer before and after; rows end with their total.

    rows: `layer` and for each quantity q `q_before` and `q_after`, None where it is not known; names that end in _bytes
    are shown in KiB. UserError where the file cannot be written.
    """
    settle_matplotlib()
    from matplotlib.figure import Figure

    layers, total = rows[:-1], rows[-1]
    shown = sorted(range(len(layers)), key=lambda k: -layers[k]["macs"])[:_SHOWN]
    chosen = [layers[k] for k in sorted(shown)]
    figure = Figure(figsize=(4 * len(pairs), 1.6 + 0.24 * len(chosen)), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0], pairs, strict=True):
        unit = 1024 if name.endswith("_bytes") else 1
        for offset, when, color in ((-0.2, "before", "#BBBBBB"), (0.2, "after", "#0072B2")):
            values = [(row[f"{name}_{when}"] or 0) / unit for row in chosen]
            axes.barh([k + offset for k in range(len(chosen))], values, 0.4, color=color, label=when)
        sums = [total[f"{name}_{when}"] for when in ("before", "after")]
        ratio = "" if None in sums else f": {sums[1] / sums[0]:.2f} of before"
        axes.set_title(f"{name.replace('_bytes', ', KiB')}{ratio}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    axes = figure.axes[0]
    axes.set_yticks(range(len(chosen)), [row["layer"] for row in chosen])
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=10)
    _save(figure, path, dpi=150)
