from types import SimpleNamespace

import pytest
import torch
from torch import nn

from octo_exp.quant.rounding import Clock
from octo_exp.runs.callbacks import per_step
from octo_exp.runs.callbacks.per_step import StepClock, Throughput, first_non_finite_layer


def trainer(batch: int) -> SimpleNamespace:
    return SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=batch))


def test_the_clock_follows_the_batches_and_keys_the_generators():
    def draw(seed: int, batch: int) -> float:
        clock = Clock(seed=seed)
        StepClock(clock=clock).on_train_batch_start(trainer(batch), None, None, 0)
        assert clock == Clock(seed=seed, step=batch)
        return torch.rand(1).item()

    assert draw(0, 3) == draw(0, 3)
    assert len({draw(0, 3), draw(1, 3), draw(0, 4)}) == 3


@pytest.mark.parametrize(("skip", "rate"), [(0, 30 / 4), (1, 20 / 3), (9, 30 / 4)])
def test_throughput_counts_training_and_not_validation(monkeypatch, skip, rate):
    # Starts at 0; batches end at 1 and 3; validation until 10; the last batch ends at 11.
    times = iter([0.0, 1.0, 3.0, 10.0, 11.0])
    monkeypatch.setattr(per_step.time, "perf_counter", lambda: next(times))
    counter, batch = Throughput(skip=skip), (None, range(10))
    counter.on_train_epoch_start(None, None)
    for _ in range(2):
        counter.on_train_batch_end(None, None, None, batch, 0)
    counter.on_validation_end(None, None)
    counter.on_train_batch_end(None, None, None, batch, 0)
    assert counter.results == {"train/images_per_s": pytest.approx(rate)}


def test_the_first_layer_that_is_not_finite_is_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert first_non_finite_layer(net, torch.ones(1, 2)) == "the loss itself"
    net[2].bias.data[0] = float("inf")
    assert first_non_finite_layer(net, torch.ones(1, 2)) == "2"
    assert not any(m._forward_hooks for m in net.modules())
