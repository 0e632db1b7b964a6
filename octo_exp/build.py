"""From a config to objects: the quantised net in its LightningModule, the loggers, the trainer."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.progress import track
from torch import nn

from octo_exp.callbacks.steps import StepClock
from octo_exp.errors import UserError
from octo_exp.kernels.api import resolve_impl
from octo_exp.lit import LitClassifier
from octo_exp.nn.convert import compensation_penalty, convert, parameter_groups
from octo_exp.nn.guard import Guard, Verdict
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme
from octo_exp.weights import checkpoint_path, net_state, start_from

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a run trains, and how it was made: kernel implementation, quantised layers, the speed guard's verdict."""

    module: LitClassifier
    clock: Clock
    impl: str
    converted: tuple[str, ...]
    verdict: Verdict | None


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as plain values, interpolations replaced."""
    container = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}


def replaced(cfg: DictConfig, **values: Any) -> DictConfig:
    """Return a copy of the config with some of its nodes replaced."""
    copy = cfg.copy()
    with open_dict(copy):
        for key, value in values.items():
            copy[key] = value
    return copy


def choice(group: str, cfg: DictConfig) -> str:
    """Return the option that was chosen for a config group; outside Hydra, the class that the node names."""
    if HydraConfig.initialized():
        return str(HydraConfig.get().runtime.choices[group])
    return str(cfg[group].get("_target_", "?")).rpartition(".")[2]


def build_module(cfg: DictConfig, datamodule: Any) -> Built:
    """Net, quantised, with the weights it starts from; checked against the data before anything is trained."""
    scheme = instantiate(cfg.quant, _convert_="all")
    impl = resolve_impl(cfg.kernel.impl, _device_type(cfg))
    log.info("kernel implementation: %s", impl)
    net = instantiate(cfg.model, _convert_="all").to(memory_format=torch.channels_last)
    _check_shapes(net, datamodule)
    clock = Clock(seed=cfg.seed)
    if not scheme.is_float and str(cfg.trainer.precision) not in ("32-true", "32", "bf16-mixed", "16-mixed"):
        raise UserError(
            f"trainer.precision={cfg.trainer.precision}: quantised layers keep fp32 weights; use 32-true or bf16-mixed"
        )
    verdict = None
    if cfg.kernel.guard and not scheme.is_float:
        verdict = speed_guard(
            net, scheme, impl=impl, input_shape=datamodule.input_shape, batch_size=cfg.data.batch_size
        )
    converted = quantize_net(net, scheme, verdict, impl=impl, clock=clock, input_shape=datamodule.input_shape)
    # A DictConfig has a method of that name.
    rule = instantiate(cfg["update"], _convert_="all") if cfg.get("update") else None
    if rule is not None:
        _check_updatable(net, choice("model", cfg))
        rule.apply(net)
    if cfg.init_from is not None:
        path = checkpoint_path("init_from", cfg.init_from)
        start_from(net, net_state(path, "init_from"), where=str(path))
    module = LitClassifier(
        net=net,
        num_classes=datamodule.classes,
        optimizer=instantiate(cfg.optim.optimizer) if rule is None else partial(rule.build_optimizer, net),
        scheduler=instantiate(cfg.optim.scheduler),
        parameter_groups=parameter_groups if rule is None else rule.parameter_groups,
        penalty=compensation_penalty,
    )
    return Built(module=module, clock=clock, impl=impl, converted=converted, verdict=verdict)


def _check_updatable(net: nn.Module, model: str) -> None:
    if not hasattr(net, "convs"):
        raise UserError(
            f"update= chooses what of a microcontroller graph trains, and model={model} is none; leave update= out"
        )


def speed_guard(net: nn.Module, scheme: Scheme, *, impl: str, input_shape: tuple[int, ...], batch_size: int) -> Verdict:
    """Measure (once a machine, with a progress bar) where int8 pays, and log what stays float."""
    device = "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octo_exp" / "speed_guard.json"

    def progress(names: Sequence[str]) -> Iterable[str]:
        return track(names, description="speed guard", console=Console(stderr=True), transient=True)

    guard = Guard(batch_size=batch_size, cache=cache, device=device, progress=progress)
    verdict = guard.verdict(net.to(device), scheme, impl=impl, input_shape=input_shape)
    net.to("cpu")
    for line in verdict.lines():
        log.info(line)
    return verdict


def quantize_net(
    net: nn.Module,
    scheme: Scheme,
    verdict: Verdict | None,
    *,
    impl: str,
    clock: Clock,
    input_shape: tuple[int, ...],
) -> tuple[str, ...]:
    """Convert the net as the scheme and the guard's verdict say; return the names of the quantised layers."""
    if verdict is not None and verdict.whole is not None:
        return ()
    keep = {} if verdict is None else verdict.keep
    return convert(net, scheme, impl=impl, clock=clock, input_shape=input_shape, keep=keep)


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
            is_wandb = str(node.get("_target_")).endswith("WandbLogger")
            loggers.append(instantiate(_wandb_node(cfg, node) if is_wandb else node))
    for logger in loggers:
        # Lightning passes it on even when it is None, and W&B warns of it in every run.
        getattr(logger, "_wandb_init", {}).pop("anonymous", None)
        logger.log_hyperparams(resolved(cfg))
    return loggers


def _wandb_node(cfg: DictConfig, node: DictConfig) -> DictConfig:
    """Fill what is null: online where the user has a key, else offline; the run's name; the sweep as its group."""
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    name = f"{choice('model', cfg)}-{cfg.quant.name}-{cfg.data.name}-s{cfg.seed}"
    sweep = None
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        sweep = Path(HydraConfig.get().sweep.dir).name
    defaults = {"mode": mode, "name": name, "group": sweep}
    return replaced(node, **{key: value for key, value in defaults.items() if node.get(key) is None})
