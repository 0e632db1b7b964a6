"""The composition root: a config becomes objects, they train and test, and one folder holds what came out."""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf, open_dict

from octo_exp import results
from octo_exp.callbacks.steps import StepClock
from octo_exp.errors import UserError
from octo_exp.kernels.api import resolve_impl
from octo_exp.lit import LitClassifier
from octo_exp.nn.convert import compensation_penalty, convert, parameter_groups
from octo_exp.quant.rounding import Clock
from octo_exp.weights import check_same_network, checkpoint_path, net_state, start_from, weights_sha256

log = logging.getLogger(__name__)

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
    # Lightning 2.6 with torch 2.13.
    ".*isinstance\\(treespec, LeafSpec\\).*",
)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train and test what `cfg` says; return the content of results.json.

    A run folder that already holds the results of the same configuration is returned as it is, so a sweep that is
    started again in its own folder only adds what is missing.
    """
    requested = _resolved(cfg)
    finished = results.finished(Path(cfg.save_dir), requested)
    if finished is not None:
        results.say(f"already finished: {cfg.save_dir}")
        return finished
    with _quiet():
        source = _source_run(cfg)
        if source is not None:
            cfg = _with(cfg, init_from=str(source))
        return _train_and_test(cfg, requested)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what says nothing about this run off the terminal: Lightning's banners and advice."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        yield


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=True)
    return container if isinstance(container, dict) else {}


def _with(cfg: DictConfig, **values: Any) -> DictConfig:
    copy = cfg.copy()
    with open_dict(copy):
        for key, value in values.items():
            copy[key] = value
    return copy


def _source_run(cfg: DictConfig) -> Path | None:
    """Train the transfer's source once per configuration, beside the runs that share it; return its folder.

    None without a source, and where source and target are the same data set: that run starts from nothing.
    """
    source = cfg.get("source")
    if source is None or source.name == cfg.data.name:
        return None
    copy = _with(cfg, data=source, source=None, init_from=None, train=True)
    config = {k: v for k, v in _resolved(copy).items() if k not in ("save_dir", "logger", "callbacks")}
    shared = Path(cfg.save_dir).parent / "_sources"
    folder = (
        shared / f"{source.name}-{_choice('model', cfg)}-{cfg.quant.name}-s{cfg.seed}-{results.fingerprint(config)}"
    )
    if not (folder / results.FILE).exists():
        results.say(f"transfer: training the source {source.name} once, in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        copy = _with(copy, save_dir=str(folder))
        _train_and_test(copy, _resolved(copy))
    return folder


def _choice(group: str, cfg: DictConfig) -> str:
    """Return the option that was chosen for a config group; outside Hydra, the class that the node names."""
    if HydraConfig.initialized():
        return str(HydraConfig.get().runtime.choices[group])
    return str(cfg[group].get("name", cfg[group].get("_target_", "?"))).rpartition(".")[2]


def _train_and_test(cfg: DictConfig, requested: Mapping[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    folder = Path(cfg.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = instantiate(cfg.data)
    datamodule.setup()
    module, clock, impl, converted = _build(cfg, datamodule)
    trainer, callbacks = _trainer(cfg, clock)
    try:
        metrics = _stages(cfg, trainer, module, datamodule)
    finally:
        # Without it, the next job of a sweep would go on writing into this one's W&B run.
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
    content = {
        **metrics,
        **_callback_results(callbacks),
        "data": cfg.data.name,
        "source": cfg.source.name if cfg.get("source") else None,
        "model": _choice("model", cfg),
        "quant": cfg.quant.name,
        "kernel": impl,
        "seed": cfg.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "train_images": datamodule.train_size,
        "parameters": sum(p.numel() for p in module.net.parameters()),
        "quantized_layers": list(converted),
        "threads": torch.get_num_threads(),
        "weights_sha256": weights_sha256(module.net),
        "init_from": cfg.init_from,
        **results.versions(),
        "seconds": time.perf_counter() - started,
        "config": requested,
    }
    results.write(folder, content)
    results.show(folder, content)
    return content


def _build(cfg: DictConfig, datamodule: Any) -> tuple[LitClassifier, Clock, str, tuple[str, ...]]:
    """Net, quantised, with the weights it starts from; checked against the data before anything is trained."""
    scheme = instantiate(cfg.quant, _convert_="all")
    impl = resolve_impl(cfg.kernel.impl, _device_type(cfg))
    log.info("kernel implementation: %s", impl)
    net = instantiate(cfg.model, _convert_="all").to(memory_format=torch.channels_last)
    _check_shapes(net, datamodule)
    clock = Clock(seed=cfg.seed)
    converted = convert(net, scheme, impl=impl, clock=clock, input_shape=datamodule.input_shape)
    if cfg.init_from is not None:
        path = checkpoint_path("init_from", cfg.init_from)
        start_from(net, net_state(path, "init_from"), where=str(path))
    module = LitClassifier(
        net=net,
        num_classes=datamodule.classes,
        optimizer=instantiate(cfg.optim.optimizer),
        scheduler=instantiate(cfg.optim.scheduler),
        parameter_groups=parameter_groups,
        penalty=compensation_penalty,
    )
    return module, clock, impl, converted


def _device_type(cfg: DictConfig) -> str:
    wanted = cfg.trainer.accelerator
    cuda = wanted in ("gpu", "cuda") or (wanted == "auto" and torch.cuda.is_available())
    return "cuda" if cuda else "cpu"


def _check_shapes(net: torch.nn.Module, datamodule: Any) -> None:
    """One image of zeros through the float net: shapes and classes must agree before training starts."""
    shape = datamodule.input_shape
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, *shape))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model and data do not fit: an image of {datamodule.name} is {shape} ({reason}); "
            "check model.in_channels, model.image_size and data.channels"
        ) from error
    net.train()
    if logits.shape != (1, datamodule.classes):
        raise UserError(
            f"the model gives {logits.shape[-1]} classes and {datamodule.name} has {datamodule.classes}; "
            "leave model.num_classes to the data"
        )


def _trainer(cfg: DictConfig, clock: Clock) -> tuple[Trainer, dict[str, Any]]:
    callbacks: dict[str, Any] = {name: instantiate(node) for name, node in (cfg.callbacks or {}).items() if node}
    if not cfg.trainer.enable_progress_bar:
        callbacks.pop("progress", None)
    # The run prints its own table; W&B's summary of the same numbers would scroll it away.
    os.environ.setdefault("WANDB_SILENT", "true")
    loggers = [instantiate(_logger(node)) for node in (cfg.logger or {}).values() if node]
    trainer = instantiate(
        cfg.trainer,
        callbacks=[StepClock(clock=clock), *callbacks.values()],
        logger=loggers or False,
        default_root_dir=cfg.save_dir,
    )
    return trainer, callbacks


def _logger(node: DictConfig) -> DictConfig:
    """W&B goes online where the user has a key, offline elsewhere; the config and WANDB_MODE come first."""
    if not node.get("_target_", "").endswith("WandbLogger") or node.get("mode") is not None:
        return node
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    return _with(node, mode=mode)


def _stages(cfg: DictConfig, trainer: Trainer, module: LitClassifier, datamodule: Any) -> dict[str, float]:
    """Fit and test as the config says; return the last value of every logged metric."""
    ckpt = None if cfg.ckpt is None else checkpoint_path("ckpt", cfg.ckpt)
    if ckpt is not None:
        check_same_network(module.net, net_state(ckpt, "ckpt"), where=str(ckpt))
    if not cfg.train and cfg.test and ckpt is None:
        raise UserError("train=false evaluates a checkpoint: give ckpt=<run folder or checkpoint file>")
    metrics: dict[str, float] = {}
    if cfg.train:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt, weights_only=None if ckpt is None else True)
        metrics |= _numbers(trainer.callback_metrics)
    if cfg.test:
        tested = None if cfg.train else ckpt
        trainer.test(module, datamodule=datamodule, ckpt_path=tested, verbose=False, weights_only=True)
        metrics |= _numbers(trainer.callback_metrics)
    return metrics


def _numbers(metrics: Mapping[str, torch.Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if not key.endswith(("_step", "_epoch"))}


def _callback_results(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for callback in callbacks.values():
        merged |= getattr(callback, "results", None) or {}
    return merged
