"""The optimizer of a config, and its learning-rate schedule as Lightning steps it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from octo_exp.base.errors import ConfigError
from octo_exp.runs.assemble.construct import construct
from octo_exp.runs.lit import LOGGED, Schedule

# Steps of a run whose length is not known yet, to see whether a schedule can be made at all.
_SOME_STEPS = 100


def optimizer_of(cfg: DictConfig) -> Callable[[Any], Optimizer]:
    """Return parameter groups -> the optimizer of `optim.optimizer`; ConfigError in one line from either."""

    def build(groups: Any) -> Optimizer:
        groups = list(groups)
        made: Optimizer = construct("optim.optimizer", cfg.optim.optimizer, lambda node: _part(node)(groups))
        return made

    return build


def schedule_of(cfg: DictConfig) -> Schedule | None:
    """Return the schedule of `optim.scheduler`, or None.

    Stepped as `optim.interval` (step or epoch) and `optim.frequency` say: where they are not given, every step if its
    class counts the run's steps (`total_steps`), else every epoch, as Lightning does. `optim.monitor` is the metric
    that ReduceLROnPlateau follows.
    """
    node = cfg.optim.get("scheduler")
    return partial(_scheduled, cfg.optim) if node else None


def check_optim(cfg: DictConfig) -> None:
    """Raise ConfigError for an optimizer or a schedule that cannot be made, before there is a network."""
    # Two dimensions, for those that want a matrix.
    optimizer = optimizer_of(cfg)([{"params": [nn.Parameter(torch.zeros(2, 2))]}])
    schedule = schedule_of(cfg)
    if schedule is None:
        return
    if _counts_steps(cfg.optim.scheduler) and cfg.trainer.max_epochs == -1 and cfg.trainer.max_steps == -1:
        raise ConfigError(
            "optim.scheduler counts the run's steps, and trainer.max_epochs=-1 has no end; set trainer.max_steps, or "
            "optim.scheduler=null"
        )
    schedule(optimizer, lambda: _SOME_STEPS)
    construct("optim.scheduler", cfg.optim.scheduler, lambda node: _step(_made(node, optimizer, _SOME_STEPS)))


def _step(scheduler: Any) -> None:
    """Step a schedule once: some find only then that an argument is wrong."""
    scheduler.optimizer.step()
    scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))


def _part(node: DictConfig) -> Callable[..., Any]:
    """Return what a node names with its arguments, to be called with what is not known yet."""
    part: Callable[..., Any] = instantiate(node, _partial_=True, _convert_="all")
    return part


def _scheduled(optim: DictConfig, optimizer: Optimizer, total_steps: Callable[[], int]) -> dict[str, Any]:
    node = optim.scheduler
    # Not inside of the constructor: what the count is refused for is none of the scheduler's arguments.
    steps = total_steps() if _counts_steps(node) else None
    scheduler = construct("optim.scheduler", node, lambda node: _made(node, optimizer, steps))
    config = {
        "scheduler": scheduler,
        "interval": optim.get("interval") or ("step" if _counts_steps(node) else "epoch"),
        "frequency": optim.get("frequency") or 1,
    }
    if isinstance(scheduler, ReduceLROnPlateau):
        config["monitor"] = _monitor(optim.get("monitor"), config["interval"])
    return config


def _made(node: DictConfig, optimizer: Optimizer, steps: int | None) -> Any:
    more = {"total_steps": steps} if _counts_steps(node) else {}
    return _part(node)(optimizer, **more)


def _monitor(metric: Any, interval: str) -> str:
    """Return what ReduceLROnPlateau follows."""
    known = LOGGED if interval == "epoch" else ("train/loss",)
    if metric not in known:
        raise ConfigError(
            f"optim.monitor={metric}: ReduceLROnPlateau follows a metric by {interval}; set optim.monitor to one of "
            f"{', '.join(known)}"
        )
    return str(metric)


def _counts_steps(node: DictConfig) -> bool:
    """Whether a schedule is told how many steps the run has."""
    if not node.get("_target_") or node.get("total_steps") is not None or node.get("epochs") is not None:
        return False
    return "total_steps" in inspect.signature(get_object(str(node._target_))).parameters
