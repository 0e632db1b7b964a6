"""A run that was broken off anywhere and goes on equals the one that never stopped."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning import Callback
from omegaconf import DictConfig

from octo_exp.base import signals
from tests.run_helpers import SMALL, go

# 15 batches an epoch.
FINE = (*SMALL, "data.batch_size=12", "trainer.log_every_n_steps=1", "callbacks.quant_health.every_n_steps=5")
# All that is random, learned or stored across steps.
CASES: dict[str, tuple[str, ...]] = {
    "octo": (*FINE, "quant=octo", "quant.g.rounding=stochastic", "quant/clip=learned", "quant.skip=[]"),
    "lac": (*FINE, "quant=lac", "model.norm=batch", "data.augment={crop_padding:1,hflip:true}", "quant.skip=[]"),
    "accumulate": (
        *FINE,
        "quant=int8",
        "trainer.accumulate_grad_batches=3",
        "trainer.max_epochs=9",
        "trainer.max_steps=8",
    ),
    "validation": (*FINE, "quant=int8", "trainer.val_check_interval=0.25", "callbacks=early_stop"),
    "every_step": (*FINE, "quant=int8", "trainer.val_check_interval=1"),
    "no_scheduler": (*FINE, "quant=int8", "optim.scheduler=null"),
}
EVERY = "callbacks.last_checkpoint.every_n_train_steps"
# What two runs of the same experiment differ in: they are measured.
MEASURED = ("seconds", "train/images_per_s", "memory/peak_mib", "config", "overrides")


class KilledError(BaseException):
    """Stands for SIGKILL: nobody catches it."""


class Kill(Callback):
    """Breaks a run off at the n-th call of a hook."""

    def __init__(self, *, hook: str, call: int) -> None:
        self.left = call
        setattr(self, hook, self._count)

    def _count(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({key: value for key, value in results.items() if key not in MEASURED}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """name of a case -> (results, metrics.csv) of the run that never stopped."""
    done: dict[str, tuple[dict[str, Any], str]] = {}

    def get(name: str) -> tuple[dict[str, Any], str]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = (go(folder, *CASES[name]), (folder / "metrics.csv").read_text())
        return done[name]

    return get


@contextlib.contextmanager
def accompanied(monkeypatch, callback: Callback) -> Iterator[None]:
    """Runs have a callback that their config does not name: callbacks belong to what a run is."""
    import octo_exp.runs.run as module

    build = module.build_trainer

    def with_callback(cfg: DictConfig, *args: Any) -> Any:
        trainer, callbacks = build(cfg, *args)
        trainer.callbacks.insert(0, callback)
        return trainer, callbacks

    with monkeypatch.context() as patched:
        patched.setattr(module, "build_trainer", with_callback)
        yield


def broken_off(monkeypatch, folder, *settings: str, hook: str, call: int) -> None:
    """Run until a hook is called for the n-th time."""
    with accompanied(monkeypatch, Kill(hook=hook, call=call)), pytest.raises(KilledError):
        go(folder, *settings)


PLACES = [
    ("octo", "on_train_batch_start", 12),
    ("accumulate", "on_train_batch_end", 23),
]
MORE_PLACES = [
    ("validation", "on_validation_batch_end", 6),
    ("octo", "on_test_start", 1),
    ("lac", "on_validation_end", 2),
    ("validation", "on_train_epoch_end", 2),
    ("octo", "on_train_batch_end", 21),
    ("octo", "on_train_epoch_end", 1),
    ("octo", "on_validation_batch_end", 2),
    ("octo", "on_train_end", 1),
    ("octo", "on_test_end", 1),
    ("lac", "on_train_batch_end", 13),
    ("lac", "on_test_start", 1),
    ("accumulate", "on_train_batch_start", 8),
    ("accumulate", "on_test_start", 1),
    ("validation", "on_validation_end", 3),
    ("every_step", "on_validation_end", 7),
    ("no_scheduler", "on_train_batch_end", 13),
]
EVERYWHERE = [*PLACES, *(pytest.param(*place, marks=pytest.mark.slow) for place in MORE_PLACES)]


@pytest.mark.parametrize(("name", "hook", "call"), EVERYWHERE)
def test_it_goes_on_as_if_it_had_never_stopped(whole, tmp_path, monkeypatch, name, hook, call):
    settings = (*CASES[name], f"{EVERY}=5")
    broken_off(monkeypatch, tmp_path, *settings, hook=hook, call=call)
    assert not (tmp_path / "results.json").exists()
    resumed = go(tmp_path, *settings, "resume=auto")
    results, history = whole(name)
    assert numbers(resumed) == numbers(results)
    assert (tmp_path / "metrics.csv").read_text() == history


class Signal(Callback):
    """Sends this process a signal at the n-th call of a hook."""

    def __init__(self, *, hook: str, call: int, number: int) -> None:
        self.left, self.number = call, number
        setattr(self, hook, self._count)

    def _count(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGINT is heeded, which a shell's background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(
    ("name", "hook", "call", "number", "step"),
    [
        ("octo", "on_train_batch_start", 7, signal.SIGTERM, 7),
        pytest.param("octo", "on_train_batch_end", 16, signal.SIGINT, 16, marks=pytest.mark.slow),
        pytest.param("octo", "on_test_start", 1, signal.SIGTERM, 30, marks=pytest.mark.slow),
        # A step of three batches ends first.
        ("accumulate", "on_train_batch_start", 8, signal.SIGUSR2, 3),
        pytest.param("validation", "on_validation_batch_start", 3, signal.SIGUSR1, 6, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_step_and_loses_nothing(whole, tmp_path, monkeypatch, name, hook, call, number, step):
    settings = CASES[name]
    sent = Signal(hook=hook, call=call, number=number)
    with accompanied(monkeypatch, sent), pytest.raises(signals.Stopped) as stopped:
        go(tmp_path, *settings)
    assert stopped.value.exit_code == {signal.SIGINT: 130}.get(number, 143)
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "failed.json").exists()
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step
    assert numbers(go(tmp_path, *settings, "resume=auto")) == numbers(whole(name)[0])
    assert (tmp_path / "metrics.csv").read_text() == whole(name)[1]


def test_handlers_are_given_back_and_those_of_others_stay(monkeypatch):
    def of_another(number, frame):
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signals._Asked, "installed", False)
    kept = signal.signal(signal.SIGUSR2, of_another)
    try:
        with signals.handled():
            assert signal.getsignal(signal.SIGTERM) != before
            assert signal.getsignal(signal.SIGUSR2) is of_another
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGUSR2, kept)


def test_who_asks_twice_does_not_wait_for_the_step():
    with signals.handled(), pytest.raises(signals.Stopped):
        ask_twice()


def ask_twice() -> None:
    with signals.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError
