"""The picture of a search: every design as a dot, the Pareto front as a line; no display is needed."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from octo_exp.base.files import whole_file
from octo_exp.hw.search.axes import CATEGORICAL

if TYPE_CHECKING:
    from octo_exp.hw.search.archive import Archive
    from octo_exp.hw.search.scan import Problem

# Okabe and Ito's colours, which colour-blind readers tell apart.
_DATAFLOW_COLORS = {"os": "#0072B2", "ws": "#E69F00", "is": "#009E73", "per_gemm": "#CC79A7"}
_DOTS, _FRONT = "#999999", "#D55E00"
# Area of a dot, and from which number of designs on they are that small.
_DOT, _MANY = 8, 2000
# A logarithmic axis from this ratio of largest to smallest on.
_WIDE = 30


def draw(path: Path, problem: "Problem", archive: "Archive", front: "Archive") -> None:
    """Draw objectives against each other, one picture a pair; a single one against the size of the array."""
    labels, dots, marks = _columns(problem, archive, front)
    pairs = list(itertools.combinations(labels, 2))
    columns = min(3, len(pairs))
    lines = -(-len(pairs) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.8 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    dataflow = problem.space.columns(archive.points).get("dataflow")
    # Of two objectives the front is a line; of more, its points scatter over the plane of each pair.
    several, is_line = len(problem.objectives.chosen) > 1, len(problem.objectives.chosen) == 2
    for axes, (across, up) in zip(grid, pairs, strict=False):
        _scatter(axes, dots[across], dots[up], dataflow)
        style: dict[str, Any] = {"drawstyle": "steps-post", "linestyle": "-" if is_line else ""}
        label = "Pareto front" if several else "best"
        axes.plot(marks[across], marks[up], marker="o", markersize=4, color=_FRONT, label=label, **style)
        _dress(axes, labels[across], labels[up], dots[across], dots[up])
    for axes in grid[len(pairs) :]:
        axes.set_axis_off()
    # Below the pictures: inside, it would hide designs.
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, markerscale=1.5)
    figure.suptitle(f"{archive.evaluated:,} designs around {problem.space.base.name}")
    with whole_file(path) as file:
        figure.savefig(file, dpi=120, format="png")


def _columns(problem: "Problem", archive: "Archive", front: "Archive") -> Any:
    """Return name -> label, and name -> values of all designs and of the front, at least two names."""
    chosen = {objective.name: objective for objective in problem.objectives.chosen}
    dots, marks = (
        {name: np.array(values[objective.column], float) for name, objective in chosen.items()}
        for values in (problem.objectives.columns(archive.costs), problem.objectives.columns(front.costs))
    )
    labels = {name: objective.label for name, objective in chosen.items()}
    if len(chosen) == 1:
        name, sides = _beside(problem, archive, front)
        labels, dots, marks = {name: name, **labels}, {name: sides[0], **dots}, {name: sides[1], **marks}
    return labels, dots, marks


def _beside(problem: "Problem", archive: "Archive", front: "Archive") -> Any:
    """Return what a single objective is drawn against: the first size in which the designs differ."""
    space = problem.space
    machines = [space.machines(space.decode(chosen.points)) for chosen in (archive, front)]
    sizes = {"processing_elements": "processing elements", "sram_kib": "on-chip memory, KiB"}
    sizes |= {axis: axis.replace("_", " ") for axis in space.axes if axis not in CATEGORICAL}
    columns = [(label, [getattr(m, name)[:, 0].astype(float) for m in machines]) for name, label in sizes.items()]
    taken = problem.objectives.chosen[0].label
    return next((c for c in columns if np.ptp(c[1][0]) > 0 and c[0] != taken), columns[0])


def _scatter(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], dataflow: list[str] | None) -> None:
    names = np.array(dataflow if dataflow is not None else ["designs"] * len(x))
    for name in dict.fromkeys(names.tolist()):
        chosen = names == name
        axes.scatter(
            x[chosen],
            y[chosen],
            s=_DOT if len(x) > _MANY else 4 * _DOT,
            alpha=0.5,
            linewidths=0,
            color=_DATAFLOW_COLORS.get(name, _DOTS),
            label=name,
        )


def _dress(axes: Axes, across: str, up: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    if x.min() > 0 and x.max() / x.min() > _WIDE:
        axes.set_xscale("log")
        _label_decades(axes.xaxis)
    if y.min() > 0 and y.max() / y.min() > _WIDE:
        axes.set_yscale("log")
        _label_decades(axes.yaxis)


def _label_decades(axis: Axis) -> None:
    """Write 200 M and 1 G on a logarithmic axis, far enough from each other."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(EngFormatter())
    axis.set_minor_formatter(NullFormatter())
