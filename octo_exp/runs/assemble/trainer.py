"""The trainer of a config, its callbacks and its loggers."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, ListConfig

from octo_exp.runs.assemble.composed import choice, replaced, resolved
from octo_exp.runs.assemble.construct import construct
from octo_exp.runs.assemble.module import Built
from octo_exp.runs.assemble.monitors import check_monitors
from octo_exp.runs.callbacks.per_step import StepClock
from octo_exp.runs.callbacks.record import RunRecord
from octo_exp.runs.checkpoint import WholeCheckpointIO
from octo_exp.runs.fit_loop import make_exact
from octo_exp.runs.tracking import default_mode


def build_trainer(
    cfg: DictConfig, built: Built, record: RunRecord, page: Mapping[str, str | None]
) -> tuple[Trainer, dict[str, Callback]]:
    """Return the trainer and its callbacks by their names in the config.

    record: what checkpoints carry; page: id, group and resumed_from of the run in W&B.
    """
    if built.verdict is not None and built.verdict.whole == "bf16":
        cfg = replaced(cfg, trainer=replaced(cfg.trainer, precision="bf16-mixed"))
    callbacks = _callbacks(cfg)
    trainer = _trainer(
        cfg, [StepClock(clock=built.clock), record, *callbacks.values()], _logged(cfg, _loggers(cfg, page))
    )
    return make_exact(trainer), callbacks


def check_trainer(cfg: DictConfig) -> None:
    """Make callbacks, loggers and trainer once, to no use: what they refuse is found before anything is read.

    ConfigError in one line, also for what Lightning itself refuses.
    """
    callbacks = _callbacks(cfg)
    check_monitors(cfg, callbacks)
    _loggers(cfg, {})
    _trainer(cfg, list(callbacks.values()), [])


def _trainer(cfg: DictConfig, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    plugins = {"plugins": [*_plugins(cfg), WholeCheckpointIO()]}
    given: dict[str, Any] = {
        "callbacks": callbacks,
        "logger": loggers or False,
        "default_root_dir": cfg.save_dir,
        **plugins,
    }
    if cfg.trainer.accelerator == "auto" and not torch.cuda.is_available():
        # Lightning would take whatever else it finds, as Apple's GPU, for which there are no kernels.
        given["accelerator"] = "cpu"
    # The run's own objects are no part of the node: Hydra would look into them.
    make = partial(instantiate, _convert_="all", _partial_=True)
    trainer: Trainer = construct("trainer", cfg.trainer, lambda node: make(node)(**given))
    return trainer


def _plugins(cfg: DictConfig) -> list[Any]:
    found = cfg.trainer.get("plugins")
    nodes = found if isinstance(found, ListConfig) else [found] if found else []
    return [construct("trainer.plugins", node) if isinstance(node, DictConfig) else node for node in nodes]


def _callbacks(cfg: DictConfig) -> dict[str, Callback]:
    nodes = {name: node for name, node in (cfg.get("callbacks") or {}).items() if node}
    if not cfg.trainer.get("enable_progress_bar", True):
        nodes.pop("progress", None)
    return {str(name): construct(f"callbacks.{name}", node) for name, node in nodes.items()}


def _is_wandb(node: DictConfig) -> bool:
    return isinstance(node, DictConfig) and str(node.get("_target_")).endswith((".WandbRun", ".WandbLogger"))


def _loggers(cfg: DictConfig, page: Mapping[str, str | None]) -> list[Logger]:
    # The run prints its own table; W&B's summary of the same numbers would scroll it away.
    os.environ.setdefault("WANDB_SILENT", "true")
    nodes = {name: node for name, node in (cfg.get("logger") or {}).items() if node}
    return [
        construct(f"logger.{name}", _wandb_node(cfg, node, page) if _is_wandb(node) else node)
        for name, node in nodes.items()
    ]


def _logged(cfg: DictConfig, loggers: list[Logger]) -> list[Logger]:
    for logger in loggers:
        logger.log_hyperparams(resolved(cfg))
    return loggers


def _wandb_node(cfg: DictConfig, node: DictConfig, page: Mapping[str, str | None]) -> DictConfig:
    """Fill what is null: online where the user has a key, else offline; the run's name; its id; the sweep as group."""
    name = f"{choice('model', cfg)}-{cfg.quant.name}-{cfg.data.name}-s{cfg.seed}"
    defaults = {"mode": default_mode(), "name": name, **page}
    # Lightning's own logger knows no `resumed_from`.
    return replaced(node, **{key: value for key, value in defaults.items() if key in node and node[key] is None})
