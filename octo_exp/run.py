"""The life of a run: a config becomes objects, they train and test, and one folder holds what came out."""

import contextlib
import dataclasses
import gc
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from octo_exp import results
from octo_exp.assemble import Built, build_module, build_trainer, choice, replaced, resolved
from octo_exp.errors import UserError
from octo_exp.tracking import WandbRun
from octo_exp.trust import check_targets
from octo_exp.weights import check_same_network, checkpoint_path, net_state, weights_sha256

_NOISE = (
    # Data lie in memory: worker processes would only cost time.
    ".*does not have many workers.*",
    # Short epochs are meant.
    ".*smaller than the logging interval.*",
    # The run's folder holds Hydra's files already, and its checkpoints when it goes on.
    ".*logs directory .* exists and is not empty.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    # A run that goes on from another's checkpoint keeps its own.
    ".*dirpath has changed from.*",
    # A machine of a SLURM cluster, used by itself.
    ".*`srun` command is available on your system.*",
    # Lightning 2.6 with torch 2.13.
    ".*isinstance\\(treespec, LeafSpec\\).*",
)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train and test what `cfg` says; return the content of results.json.

    A run folder that already holds the results of the same configuration is returned as it is, so a sweep that is
    started again in its own folder only adds what is missing.
    """
    check_targets(cfg)
    requested = resolved(cfg)
    finished = results.finished(Path(cfg.save_dir), requested)
    if finished is not None:
        results.say(f"already finished: {cfg.save_dir}")
        return finished
    with _quiet():
        source = _source_run(cfg)
        if source is not None:
            cfg = replaced(cfg, init_from=str(source))
        try:
            return _train_and_test(cfg, requested)
        finally:
            # Trainer and net hold each other: left to chance, a sweep's next job would start beside this one's tensors.
            gc.collect()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what says nothing about this run off the terminal: Lightning's banners and advice."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        yield


def _source_run(cfg: DictConfig) -> Path | None:
    """Train the transfer's source once per configuration, beside the runs that share it; return its folder.

    None without a source, where source and target are the same data set (that run starts from nothing), and where a
    checkpoint is given: its weights have been through the transfer.
    """
    source = cfg.get("source")
    if source is None or source.name == cfg.data.name or cfg.ckpt is not None:
        return None
    # Refused now, not once the source is trained, which may be under a part of it.
    instantiate(cfg.quant, _convert_="all")
    # What is quantised after training (quant=ptq) trains in float: so does its source.
    quant = cfg.quant.get("training") or cfg.quant
    copy = replaced(cfg, data=source, source=None, init_from=None, train=True, quant=quant)
    mark = results.experiment(resolved(copy))
    name = f"{source.name}-{choice('model', cfg)}-{quant.name}-s{cfg.seed}-{mark}"
    folder = Path(cfg.save_dir).parent / "_sources" / name
    copy = replaced(copy, save_dir=str(folder))
    if results.finished(folder, resolved(copy)) is None:
        results.say(f"transfer: training the source {source.name} once, in {folder}")
        _train_and_test(copy, resolved(copy))
    return folder


def _train_and_test(cfg: DictConfig, requested: Mapping[str, Any]) -> dict[str, Any]:
    # Of a transfer's source, another node stands at `data` now, and interpolations say something else.
    check_targets(cfg)
    started = time.perf_counter()
    folder = Path(cfg.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = instantiate(cfg.data)
    datamodule.setup()
    built = build_module(cfg, datamodule)
    for line in built.verdict.lines() if built.verdict is not None else ():
        results.say(line)
    trainer, callbacks = build_trainer(cfg, built)
    # Integers are no parameters: they are counted while they are floats.
    parameters = sum(p.numel() for p in built.module.net.parameters())
    with _finished_loggers(trainer):
        metrics = _stages(cfg, trainer, built, datamodule)
        content = {
            **metrics,
            **_callback_results(callbacks),
            **_facts(cfg, trainer, built),
            "parameters": parameters,
            "train_images": datamodule.train_size,
            "seconds": time.perf_counter() - started,
            "config": requested,
        }
        _summarize(trainer, content)
    results.write(folder, content)
    results.show(folder, content)
    return content


@contextlib.contextmanager
def _finished_loggers(trainer: Trainer) -> Iterator[None]:
    """Close W&B's runs, however the run ends: its process ends with them."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.close(failed=failed)


def _summarize(trainer: Trainer, content: Mapping[str, Any]) -> None:
    """Give W&B's run page the figures of results.json that no step logged."""
    numbers = {key: value for key, value in content.items() if isinstance(value, int | float | str)}
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.experiment.summary.update(numbers)


def _stages(cfg: DictConfig, trainer: Trainer, built: Built, datamodule: Any) -> dict[str, float]:
    """Fit and test as the config says; return the last value of every logged metric."""
    ckpt = None if cfg.ckpt is None else checkpoint_path("ckpt", cfg.ckpt)
    if ckpt is not None:
        remedy = "use the run's own model=, quant= and data="
        check_same_network(built.module.net, net_state(ckpt, "ckpt"), found=f"ckpt: {ckpt}", remedy=remedy)
    # A graph is a trained network: it may be evaluated as it is; what is quantised after training starts from one.
    given = cfg.quant.name == "native" or (built.after is not None and cfg.init_from is not None)
    if not cfg.train and cfg.test and ckpt is None and not given:
        raise UserError("train=false evaluates a checkpoint: give ckpt=<run folder or checkpoint file>")
    if built.after is not None:
        built.after.forget(Path(cfg.save_dir))
    metrics: dict[str, float] = {}
    if cfg.train:
        trainer.fit(built.module, datamodule=datamodule, ckpt_path=ckpt, weights_only=None if ckpt is None else True)
        metrics |= _numbers(trainer.callback_metrics)
    tested = None if cfg.train else ckpt
    if built.after is not None:
        metrics |= _quantize(cfg, trainer, built, datamodule, tested)
        tested = None
    if cfg.test:
        trainer.test(built.module, datamodule=datamodule, ckpt_path=tested, verbose=False, weights_only=True)
        metrics |= _numbers(trainer.callback_metrics)
    return metrics


def _quantize(cfg: DictConfig, trainer: Trainer, built: Built, datamodule: Any, ckpt: Path | None) -> dict[str, float]:
    """Test the float net, then put its integer graph in its place; return the metrics, named float/test/..."""
    module, found = built.module, {}
    if ckpt is not None:
        module.net.load_state_dict(net_state(ckpt, "ckpt"))
    if cfg.test:
        module.prefix = "float/"
        trainer.test(module, datamodule=datamodule, verbose=False)
        found, module.prefix = _numbers(trainer.callback_metrics), ""
    module.net = built.after.integer_net(module.net.cpu(), datamodule, Path(cfg.save_dir))
    return found


def _numbers(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if not key.endswith(("_step", "_epoch"))}


def _callback_results(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for callback in callbacks.values():
        merged |= getattr(callback, "results", None) or {}
    return merged


def _update_facts(cfg: DictConfig, built: Built) -> dict[str, Any]:
    """Return the update rule's name and the memory that it needs beside the forward pass."""
    if built.rule is None:
        return {"update": None}
    account = built.rule.memory(built.module.net)
    return {
        "update": choice("update", cfg),
        "update/optimizer": built.rule.optimizer,
        "update/extra_memory_kb": account.kb,
        "update/parameters_kb": account.parameters_kb,
    }


def _facts(cfg: DictConfig, trainer: Trainer, built: Built) -> dict[str, Any]:
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
        "quantized_layers": list(built.converted),
        "speed_guard": None if built.verdict is None else dataclasses.asdict(built.verdict),
        "threads": torch.get_num_threads(),
        "weights_sha256": weights_sha256(built.module.net),
        "init_from": cfg.init_from,
        "versions": results.versions(),
        "machine": results.machine(),
    }
