"""The trainer of a config, its callbacks and its loggers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from octo_exp.assemble.config import choice, replaced, resolved
from octo_exp.assemble.module import Built
from octo_exp.callbacks.steps import StepClock
from octo_exp.tracking import default_mode


def build_trainer(cfg: DictConfig, built: Built) -> tuple[Trainer, dict[str, Any]]:
    """Return the trainer and its callbacks by their names in the config."""
    if built.verdict is not None and built.verdict.whole == "bf16":
        cfg = replaced(cfg, trainer=replaced(cfg.trainer, precision="bf16-mixed"))
    nodes: Mapping[str, Any] = cfg.get("callbacks") or {}
    callbacks: dict[str, Any] = {name: instantiate(node, _convert_="all") for name, node in nodes.items() if node}
    if not cfg.trainer.enable_progress_bar:
        callbacks.pop("progress", None)
    trainer = instantiate(
        cfg.trainer,
        callbacks=[StepClock(clock=built.clock), *callbacks.values()],
        logger=_loggers(cfg) or False,
        default_root_dir=cfg.save_dir,
    )
    return trainer, callbacks


def _loggers(cfg: DictConfig) -> list[Logger]:
    # The run prints its own table; W&B's summary of the same numbers would scroll it away.
    os.environ.setdefault("WANDB_SILENT", "true")
    loggers = []
    for node in (cfg.get("logger") or {}).values():
        if node:
            is_wandb = str(node.get("_target_")).endswith((".WandbRun", ".WandbLogger"))
            loggers.append(instantiate(_wandb_node(cfg, node) if is_wandb else node))
    for logger in loggers:
        logger.log_hyperparams(resolved(cfg))
    return loggers


def _wandb_node(cfg: DictConfig, node: DictConfig) -> DictConfig:
    """Fill what is null: online where the user has a key, else offline; the run's name; the sweep as its group."""
    mode = default_mode()
    name = f"{choice('model', cfg)}-{cfg.quant.name}-{cfg.data.name}-s{cfg.seed}"
    sweep = None
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        sweep = Path(HydraConfig.get().sweep.dir).name
    defaults = {"mode": mode, "name": name, "group": sweep}
    return replaced(node, **{key: value for key, value in defaults.items() if node.get(key) is None})
