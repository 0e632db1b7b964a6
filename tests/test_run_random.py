"""Everything random is keyed: a resumed run is the one that never stopped."""

import csv
from typing import ClassVar

import pytest
import torch
from lightning import Callback

from tests.run_helpers import SMALL, go
from tests.test_resume import broken_off

# Dropout and stochastic rounding: everything random that a resumed run must repeat.
RANDOM = (
    "model=alexnet",
    "model.stages=[4,pool,6,pool]",
    "model.classifier=[16]",
    "logger=csv",
    "hw=[]",
    "data.limit_train=200",
    "data.epochs=3",
    "data.augment={crop_padding:2,hflip:true}",
    "quant=octo",
    "quant.g.rounding=stochastic",
    "quant/clip=learned",
    "quant.skip=[]",
)


def test_the_seed_reaches_the_first_weights(tmp_path):
    still = (*SMALL, "quant=fp32", "optim.optimizer.lr=0.0")
    assert len({go(tmp_path / s, *still, f"seed={s}")["weights_sha256"] for s in ("0", "1")}) == 2


@pytest.mark.slow
def test_another_folder_may_go_on_from_a_checkpoint(tmp_path, monkeypatch):
    whole = go(tmp_path / "whole", *RANDOM)
    broken_off(monkeypatch, tmp_path / "part", *RANDOM, hook="on_train_batch_start", call=5)
    resumed = go(tmp_path / "rest", *RANDOM, f"ckpt={tmp_path / 'part'}")
    assert resumed["epochs"] == whole["epochs"] == 3
    # It went on: a run that began anew would end with the same weights.
    with (tmp_path / "rest" / "metrics.csv").open() as file:
        assert "0" not in {row["epoch"] for row in csv.DictReader(file)}
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["test/acc"] == whole["test/acc"]


class Draws(Callback):
    """Keeps the first random number of every batch."""

    seen: ClassVar[list[float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(torch.rand(1).item())


def test_randomness_is_keyed_by_batch_and_seed(tmp_path):
    spy = {"callbacks": {"draws": {"_target_": f"{__name__}.Draws"}}}
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        Draws.seen.clear()
        go(tmp_path / name, *SMALL, "trainer.accumulate_grad_batches=2", "data.batch_size=50", f"seed={seed}", **spy)
        drawn.append(tuple(Draws.seen))
    assert len(set(drawn[0])) == len(drawn[0]) >= 4
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])
