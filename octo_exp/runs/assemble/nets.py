"""The network of a config: float under a scheme, or an int8 graph, with the weights it starts from."""

import logging
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from octo_exp.base.caches import cache_folder
from octo_exp.base.errors import UserError
from octo_exp.base.progress import with_progress
from octo_exp.data.protocol import DataModule
from octo_exp.graph.spec import ModelSpec
from octo_exp.graph.train.modules import McuConv2d
from octo_exp.nn.convert import convert
from octo_exp.nn.guard import Guard, Verdict
from octo_exp.nn.select import Selection, all_float
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme
from octo_exp.runs.assemble.compensated import start_compensated
from octo_exp.runs.assemble.composed import choice
from octo_exp.runs.native import Native
from octo_exp.runs.weights import (
    check_no_compensation,
    checkpoint_path,
    given,
    is_compensated,
    speed_guard_of,
    start_from,
)

log = logging.getLogger(__name__)


def float_net(
    cfg: DictConfig, scheme: Scheme, net: nn.Module | ModelSpec, datamodule: DataModule, *, impl: str, clock: Clock
) -> tuple[nn.Module, Selection, Verdict | None]:
    """(net, what of it is quantised, the guard's verdict) of a float network under a scheme."""
    if isinstance(net, ModelSpec):
        name = choice("model", cfg)
        raise UserError(f"model={name} is an int8 graph, which quant={cfg.quant.name} cannot train; use quant=native")
    # Lazy layers have no memory to lay out before the first image.
    _check_shapes(net, datamodule)
    net = channels_last(net)
    if not scheme.is_float and str(cfg.trainer.precision) not in ("32-true", "32", "bf16-mixed", "16-mixed"):
        raise UserError(
            f"trainer.precision={cfg.trainer.precision}: quantised layers keep fp32 weights; use 32-true or bf16-mixed"
        )
    verdict = _verdict(cfg, scheme, net, datamodule, impl=impl)
    converted = quantize_net(net, scheme, verdict, impl=impl, clock=clock, input_shape=datamodule.input_shape)
    if cfg.init_from is not None:
        weights = given(cfg.init_from)
        # Training goes on from weights alone, with a warning; what is quantised as it is must be what was trained.
        if scheme.is_float and not cfg.train and cfg.ckpt is None:
            check_no_compensation(weights.state, where=str(weights.path), quant=cfg.quant.name)
        weights.start(net)
    return net, converted, verdict


def channels_last(net: nn.Module) -> nn.Module:
    """Return the net, its weights laid out for images that are channels-last."""
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _verdict(cfg: DictConfig, scheme: Scheme, net: nn.Module, datamodule: DataModule, *, impl: str) -> Verdict | None:
    """Return what the speed guard says where it is on; a checkpoint's net is what it was where it was trained."""
    if not cfg.kernel.guard or scheme.is_float:
        return None
    kept = None if cfg.ckpt is None else speed_guard_of(checkpoint_path("ckpt", cfg.ckpt), "ckpt")
    if kept is not None:
        return Verdict(**kept)
    return speed_guard(net, scheme, impl=impl, input_shape=datamodule.input_shape, batch_size=cfg.data.batch_size)


def native_net(
    cfg: DictConfig, native: Native, model: nn.Module | ModelSpec, datamodule: DataModule
) -> tuple[nn.Module, Selection, Verdict | None]:
    """The same of an int8 graph: of a model file, or of a float net that has its trained weights first."""
    weights = None if cfg.init_from is None else given(cfg.init_from)
    path, state = (None, None) if weights is None else (weights.path, weights.state)
    _check_native(cfg, model, state)
    if isinstance(model, nn.Module):
        _check_shapes(model, datamodule)
        if weights is not None and is_compensated(weights.state):
            model, state = start_compensated(cfg, weights, model, datamodule), None
        elif state is not None and set(model.state_dict()) <= set(state):
            start_from(model, state, where=str(path))
            state = None
    net = native.graph(model, datamodule)
    _check_shapes(net, datamodule)
    if state is not None:
        start_from(net, state, where=str(path))
    head = native.head_of(net.spec, datamodule.classes)
    if not cfg.train and cfg.ckpt is None and state is None and head in ("fp", "quantized"):
        raise UserError(
            f"train=false evaluates what is trained, and quant.head={head} starts anew; give ckpt= or init_from=<run>"
        )
    names = tuple(name for name, module in net.named_modules() if isinstance(module, McuConv2d))
    floats = {name: why for name, why in all_float(net, f"quant.head={head}").floats.items() if name not in names}
    return net, Selection(quantized=names, floats=floats), None


def _check_native(cfg: DictConfig, model: nn.Module | ModelSpec, state: dict[str, Any] | None) -> None:
    """Refuse settings that an int8 graph would not follow."""
    name = choice("model", cfg)
    if str(cfg.trainer.precision) not in ("32-true", "32"):
        raise UserError(f"trainer.precision={cfg.trainer.precision}: int8 graphs keep fp32 masters; use 32-true")
    if cfg.kernel.guard or cfg.kernel.impl not in ("auto", "torch"):
        raise UserError(
            f"kernel.impl={cfg.kernel.impl}, kernel.guard={cfg.kernel.guard}: int8 graphs have arithmetics of their "
            "own; leave kernel= out and choose quant.mode="
        )
    if isinstance(model, ModelSpec):
        if model.input.is_codes and not cfg.model.get("pixels"):
            raise UserError(
                f"model={name}: the file's graph reads pixel codes, and model.pixels does not say which; choose the "
                "released model that it was made from, with model.path= of this file"
            )
        return
    if state is None and (cfg.train or cfg.ckpt is None):
        remedy = "train it with quant=fp32, then give init_from=<that run's folder>"
        if cfg.ckpt is not None:
            remedy = "give the init_from= of the run that goes on"
        raise UserError(f"quant=native quantises a trained network, and model={name} starts from nothing; {remedy}")


def speed_guard(net: nn.Module, scheme: Scheme, *, impl: str, input_shape: tuple[int, ...], batch_size: int) -> Verdict:
    """Measure (once a machine, with a progress bar) where int8 pays, and log what stays float."""
    device = "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"
    cache = cache_folder() / "speed_guard.json"
    progress = partial(with_progress, title="speed guard")
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
) -> Selection:
    """Convert the net as the scheme and the guard's verdict say; return which layers are quantised, which float."""
    if verdict is not None and verdict.whole is not None:
        return all_float(net, f"speed guard: the whole net is faster in {verdict.whole}")
    keep = {} if verdict is None else verdict.keep
    return convert(net, scheme, impl=impl, clock=clock, input_shape=input_shape, keep=keep)


def _check_shapes(net: torch.nn.Module, datamodule: DataModule) -> None:
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
