"""What a run does with its objects: fit, quantise, test; and the facts that it can tell of itself."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from omegaconf import DictConfig

from octo_exp.base import signals
from octo_exp.base.errors import UserError
from octo_exp.data.protocol import DataModule
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.runs import folder as folders
from octo_exp.runs import results
from octo_exp.runs.assemble import Built, choice
from octo_exp.runs.weights import check_same_network, net_state, weights_sha256


def stages(
    cfg: DictConfig, trainer: Trainer, built: Built, datamodule: DataModule, checkpoint: Path | None
) -> dict[str, float]:
    """Fit and test as the config says; return the last value of every logged metric."""
    if checkpoint is not None:
        remedy = "use the run's own model=, quant= and data="
        found = f"ckpt: {checkpoint}"
        check_same_network(built.module.net, net_state(checkpoint, "ckpt"), found=found, remedy=remedy)
    # A graph is a trained network: it may be evaluated as it is; what is quantised after training starts from one.
    given = cfg.quant.name == "native" or (built.after is not None and cfg.init_from is not None)
    if not cfg.train and cfg.test and checkpoint is None and not given:
        raise UserError("train=false evaluates a checkpoint: give ckpt=<run folder or checkpoint file>")
    if built.after is not None:
        built.after.forget(Path(cfg.save_dir))
    metrics: dict[str, float] = {}
    if cfg.train:
        _fit(trainer, built, datamodule, checkpoint)
        metrics |= _numbers(trainer.callback_metrics)
    tested = None if cfg.train else checkpoint
    if built.after is not None:
        metrics |= _quantize(cfg, trainer, built, datamodule, tested)
        tested = None
    if cfg.test:
        trainer.test(
            built.module, datamodule=_lightning(datamodule), ckpt_path=tested, verbose=False, weights_only=True
        )
        metrics |= _numbers(trainer.callback_metrics)
    return metrics


def _lightning(datamodule: DataModule) -> LightningDataModule:
    if not isinstance(datamodule, LightningDataModule):
        raise UserError(f"data: {type(datamodule).__name__} is no LightningDataModule; name one by data._target_=")
    return datamodule


def _fit(trainer: Trainer, built: Built, datamodule: DataModule, checkpoint: Path | None) -> None:
    """Train; a signal ends the step first, and is told with where the run stands."""
    before = 0 if checkpoint is None else folders.read(checkpoint, "ckpt").step
    with signals.deferred():
        trainer.fit(
            built.module,
            datamodule=_lightning(datamodule),
            ckpt_path=checkpoint,
            weights_only=checkpoint is not None or None,
        )
    if checkpoint is not None and trainer.global_step == before:
        remedy = "a callback had stopped it" if trainer.should_stop else "a larger trainer.max_epochs= trains on"
        results.say(
            f"nothing was left to train: {checkpoint} stands at step {before}, epoch {trainer.current_epoch}; {remedy}"
        )


def _quantize(
    cfg: DictConfig, trainer: Trainer, built: Built, datamodule: DataModule, ckpt: Path | None
) -> dict[str, float]:
    """Test the float net, then put its integer graph in its place; return the metrics, named float/test/..."""
    module, found = built.module, {}
    if ckpt is not None:
        module.net.load_state_dict(net_state(ckpt, "ckpt"))
    if cfg.test:
        module.prefix = "float/"
        trainer.test(module, datamodule=_lightning(datamodule), verbose=False)
        found, module.prefix = _numbers(trainer.callback_metrics), ""
    if built.after is not None:
        module.net = built.after.integer_net(module.net.cpu(), datamodule, Path(cfg.save_dir))
    return found


def _numbers(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if not key.endswith(("_step", "_epoch"))}


def callback_results(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the callbacks found, by the keys that each documents."""
    merged: dict[str, Any] = {}
    for callback in callbacks.values():
        merged |= getattr(callback, "results", None) or {}
    return merged


def _update_facts(cfg: DictConfig, built: Built) -> dict[str, Any]:
    """Return the update rule's name and the memory that it needs beside the forward pass."""
    net = built.module.net
    if built.rule is None or not isinstance(net, McuNet):
        return {"update": None}
    account = built.rule.memory(net)
    return {
        "update": choice("update", cfg),
        "update/optimizer": built.rule.optimizer,
        "update/extra_memory_kb": account.kb,
        "update/parameters_kb": account.parameters_kb,
    }


def facts(cfg: DictConfig, trainer: Trainer, built: Built) -> dict[str, Any]:
    """Return what the run was: names, seed, length, kernel, versions, and the hash of the final weights."""
    return {
        "data": cfg.data.name,
        "source": cfg.source.name if cfg.get("source") else None,
        "model": choice("model", cfg),
        "quant": cfg.quant.name,
        **_update_facts(cfg, built),
        "kernel": built.impl,
        "seed": cfg.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        **built.layers(),
        "speed_guard": None if built.verdict is None else dataclasses.asdict(built.verdict),
        "threads": torch.get_num_threads(),
        "weights_sha256": weights_sha256(built.module.net),
        "init_from": cfg.init_from,
        "versions": results.versions(),
        "machine": results.machine(),
    }
