"""Acceptance check 12: the demo's recipe on official MNIST, integers against floats, with and without BatchNorm.

simplecnn, first 600 training and first 1,000 test images, inputs / 255, 120 iterations of batch 50, Adam 1e-3 with
eps 1e-7, every layer quantised, five seeds.
"""

import functools
import os
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate

from octo_exp.data.sources import load_split
from octo_exp.nn.convert import compensation_penalty, convert, parameter_groups
from octo_exp.quant.rounding import Clock
from tests.configs import composed

SEEDS = range(5)


@functools.cache
def images(folder: Path) -> tuple[torch.Tensor, ...]:
    data = instantiate(composed("data=mnist", f"data.root={folder}").data)
    train, test = load_split(data.spec, "train"), load_split(data.spec, "test")
    return train.images[:600] / 255, train.labels[:600], test.images[:1000] / 255, test.labels[:1000]


@functools.cache
def accuracy(folder: Path, quant: str, norm: str, seed: int) -> float:
    """Test accuracy of one run of the recipe."""
    x, y, x_test, y_test = images(folder)
    torch.manual_seed(seed)
    cfg = composed("model=simplecnn", "data=mnist", f"model.norm={norm}", f"quant={quant}", "quant.skip=[]")
    net = instantiate(cfg.model, _convert_="all")
    clock = Clock(seed=seed)
    convert(net, instantiate(cfg.quant, _convert_="all"), impl="torch", clock=clock)
    optimizer = torch.optim.Adam(parameter_groups(net), lr=1e-3, eps=1e-7)
    for step in range(120):
        clock.step = step
        batch = slice(step * 50 % 600, step * 50 % 600 + 50)
        if batch.start == 0:
            order = torch.randperm(600)
        loss = F.cross_entropy(net(x[order[batch]]), y[order[batch]])
        penalty = compensation_penalty(net)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
    with torch.no_grad():
        return float((net.eval()(x_test).argmax(1) == y_test).float().mean())


def mean(folder: Path, quant: str, norm: str) -> float:
    return statistics.mean(accuracy(folder, quant, norm, seed) for seed in SEEDS)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_int8_is_within_a_point_of_float(data_dir, norm):
    assert abs(mean(data_dir, "int8", norm) - mean(data_dir, "fp32", norm)) <= 0.01


@pytest.mark.data
@pytest.mark.slow
def test_octo_beats_the_demos_figures(data_dir):
    # The demo: INT8 without BatchNorm .768; LAC with its BatchNorm .8365.
    assert mean(data_dir, "octo", "none") >= 0.79
    assert mean(data_dir, "octo", "batch") >= 0.86


def main() -> None:
    """`python -m tests.test_octo_recipe`: the table of these accuracies, from OCTO_DATA_DIR."""
    from rich.console import Console
    from rich.table import Table

    torch.set_num_threads(1)
    folder = Path(os.environ["OCTO_DATA_DIR"])
    table = Table("quant", "norm", *(f"seed {seed}" for seed in SEEDS), "mean")
    for quant in ("fp32", "int8", "lac", "prc", "octo"):
        for norm in ("none", "batch"):
            accuracies = [accuracy(folder, quant, norm, seed) for seed in SEEDS]
            table.add_row(quant, norm, *(f"{a:.3f}" for a in (*accuracies, statistics.mean(accuracies))))
    Console().print(table)


if __name__ == "__main__":
    main()
