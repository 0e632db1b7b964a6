"""Acceptance check 12: linear warm-up from 0 counted in steps, then cosine; other schedules stay as they were."""

import math

import numpy as np
import pytest
import torch

from octo_exp.runs.lit import warmup_cosine
from tests.graph.update.helpers import GOLDEN


def rates(lr: float, steps: int, **settings) -> np.ndarray:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, seen = warmup_cosine(optimizer, total_steps=steps, **settings), []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return np.array(seen)


def test_the_published_schedule():
    # 5 of 55 epochs of 10 steps; 0.1 for 256 images, batches of 64.
    lr = rates(0.1 / 256 * 64, 550, warmup_fraction=5 / 55, from_zero=True)
    assert np.abs(lr - np.load(GOLDEN / "lr_schedule.npz")["lr"]).max() <= 1e-12
    assert (lr[0], lr[50]) == (0, 0.025)
    assert lr[300] == pytest.approx(0.0125, abs=1e-12)


def test_the_first_step_has_a_rate_unless_asked():
    lr = rates(1.0, 20, warmup_fraction=0.2)
    assert lr[:4].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert lr[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 16)) for i in range(16)])
