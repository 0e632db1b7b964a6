"""The learning curves of a run: loss and accuracy, training and validation, as pictures."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from octo_exp.base.files import make_folder_of, whole_file
from octo_exp.base.homes import settle_matplotlib

FIGURES = ("loss", "acc")
_LABELS = {"loss": "cross-entropy loss", "acc": "accuracy"}
# Of Okabe and Ito, as in octo_exp/runs/cost_plots.py.
_COLORS = {"train": "#E69F00", "val": "#0072B2"}
# Validation comes after the epoch's last step, so it may look better than the mean of all of them.
_STAGES = {"train": "training, mean of the epoch", "val": "validation, at its end"}


def curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Rows of a history -> figure -> train | val -> (epoch, from 1, and its value).

    What is logged several times in an epoch is averaged over it.
    """
    found: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        for figure in FIGURES:
            for stage in _COLORS:
                value = row.get(f"{stage}/{figure}")
                if value not in (None, "") and row.get("epoch") not in (None, ""):
                    found.setdefault((figure, stage, int(float(row["epoch"])) + 1), []).append(float(value))
    drawn: dict[str, dict[str, list[tuple[int, float]]]] = {figure: {} for figure in FIGURES}
    for (figure, stage, epoch), values in sorted(found.items()):
        drawn[figure].setdefault(stage, []).append((epoch, sum(values) / len(values)))
    return drawn


def save_curves(folder: Path, rows: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Draw curves_loss.png and curves_acc.png into a folder; return those that had anything to show.

    Raises:
        UserError: a file cannot be written.

    """
    settle_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    written = []
    for name, lines in curves(rows).items():
        if not lines:
            continue
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axis = figure.subplots()
        for stage, points in lines.items():
            axis.plot(*zip(*points, strict=True), color=_COLORS[stage], marker="o", markersize=3, label=_STAGES[stage])
        axis.set_xlabel("epoch")
        axis.set_ylabel(_LABELS[name])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        path = folder / f"curves_{name}.png"
        make_folder_of(path)
        with whole_file(path) as file:
            figure.savefig(file, dpi=110, format="png")
        written.append(path)
    return written
