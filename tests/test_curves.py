import csv

import pytest
from PIL import Image

from octo_exp.base.errors import UserError
from octo_exp.runs.curve_plots import curves, save_curves
from tests.run_helpers import SMALL, go


def test_what_is_logged_several_times_in_an_epoch_is_averaged():
    rows = [
        {"epoch": "0", "step": 1, "train/loss": 3.0},
        {"epoch": 0, "step": 2, "train/loss": "1.0", "val/loss": ""},
        {"epoch": 0, "step": 2, "val/loss": 4.0, "val/acc": 0.5},
        {"epoch": 1, "step": 4, "train/loss": 1.5, "train/acc": None},
        {"step": 4, "quant/layer": 1.0},
    ]
    drawn = curves(rows)
    assert drawn["loss"] == {"train": [(1, 2.0), (2, 1.5)], "val": [(1, 4.0)]}
    assert drawn["acc"] == {"val": [(1, 0.5)]}


def test_a_run_draws_its_curves(tmp_path):
    go(tmp_path, *SMALL, "callbacks=curves")
    for name in ("loss", "acc"):
        with Image.open(tmp_path / f"curves_{name}.png") as image:
            assert len(image.convert("RGB").getcolors(100_000) or []) > 10
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = curves(rows)
    assert [epoch for epoch, _ in drawn["acc"]["train"]] == [1, 2]
    assert [epoch for epoch, _ in drawn["loss"]["val"]] == [1, 2]


def test_the_axis_of_one_epoch_has_no_fractions(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    seen = []

    def savefig(self, *args, **kwargs):
        low, high = self.axes[0].get_xlim()
        seen.append([tick for tick in self.axes[0].get_xticks() if low <= tick <= high])

    monkeypatch.setattr(Figure, "savefig", savefig)
    save_curves(tmp_path, [{"epoch": 0, "train/loss": 2.0}])
    assert seen == [[1]]


def test_nothing_to_draw_is_no_picture(tmp_path):
    assert save_curves(tmp_path, []) == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_history_is_refused_before_it_trains(tmp_path):
    with pytest.raises(UserError, match=r"callbacks\.curves draws metrics\.csv"):
        go(tmp_path, *SMALL, "callbacks=curves", "~logger.csv")
