"""The trainer of a config, its callbacks and its loggers."""

import os
from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from octo_exp.assemble.config import choice, replaced, resolved
from octo_exp.assemble.module import Built
from octo_exp.base.failures import message_of, user_error
from octo_exp.callbacks.record import RunRecord
from octo_exp.callbacks.steps import StepClock
from octo_exp.checkpoint import WholeCheckpointIO
from octo_exp.errors import UserError
from octo_exp.loops import make_exact
from octo_exp.tracking import default_mode


def build_trainer(
    cfg: DictConfig, built: Built, record: RunRecord, page: Mapping[str, str | None]
) -> tuple[Trainer, dict[str, Any]]:
    """Return the trainer and its callbacks by their names in the config.

    record: what checkpoints carry; page: id, group and resumed_from of the run in W&B.
    """
    if built.verdict is not None and built.verdict.whole == "bf16":
        cfg = replaced(cfg, trainer=replaced(cfg.trainer, precision="bf16-mixed"))
    nodes: Mapping[str, Any] = cfg.get("callbacks") or {}
    callbacks: dict[str, Any] = {name: instantiate(node, _convert_="all") for name, node in nodes.items() if node}
    if not cfg.trainer.enable_progress_bar:
        callbacks.pop("progress", None)
    trainer = instantiate(
        cfg.trainer,
        callbacks=[StepClock(clock=built.clock), record, *callbacks.values()],
        logger=_loggers(cfg, page) or False,
        default_root_dir=cfg.save_dir,
        plugins=[WholeCheckpointIO()],
    )
    return make_exact(trainer), callbacks


def check_trainer(cfg: DictConfig) -> None:
    """Make callbacks, loggers and trainer once, to no use: what they refuse is found before a folder is touched.

    UserError in one line, also for what Lightning itself refuses.
    """
    try:
        for node in (*(cfg.get("callbacks") or {}).values(), *(cfg.get("logger") or {}).values()):
            if node:
                page: dict[str, str | None] = {}
                instantiate(_wandb_node(cfg, node, page) if _is_wandb(node) else node, _convert_="all")
        instantiate(cfg.trainer, logger=False, enable_checkpointing=False, default_root_dir=cfg.save_dir)
    except Exception as error:
        mistake = user_error(error)
        if mistake is not None:
            raise mistake from error
        cause = error.__cause__ or error
        raise UserError(f"callbacks, logger or trainer: {message_of(cause)}; correct the setting") from error


def _is_wandb(node: DictConfig) -> bool:
    return str(node.get("_target_")).endswith((".WandbRun", ".WandbLogger"))


def _loggers(cfg: DictConfig, page: Mapping[str, str | None]) -> list[Logger]:
    # The run prints its own table; W&B's summary of the same numbers would scroll it away.
    os.environ.setdefault("WANDB_SILENT", "true")
    loggers = []
    for node in (cfg.get("logger") or {}).values():
        if node:
            loggers.append(instantiate(_wandb_node(cfg, node, page) if _is_wandb(node) else node))
    for logger in loggers:
        logger.log_hyperparams(resolved(cfg))
    return loggers


def _wandb_node(cfg: DictConfig, node: DictConfig, page: Mapping[str, str | None]) -> DictConfig:
    """Fill what is null: online where the user has a key, else offline; the run's name; its id; the sweep as group."""
    name = f"{choice('model', cfg)}-{cfg.quant.name}-{cfg.data.name}-s{cfg.seed}"
    defaults = {"mode": default_mode(), "name": name, **page}
    # Lightning's own logger knows no `resumed_from`.
    return replaced(node, **{key: value for key, value in defaults.items() if key in node and node[key] is None})
