"""The LightningModule of a config: the network, what of it trains, by which optimizer."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch.optim import Optimizer

from octo_exp.base.errors import UserError
from octo_exp.data.protocol import DataModule
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.update.rule import UpdateRule
from octo_exp.kernels.ops import backend, resolve_impl
from octo_exp.models.build import build_model
from octo_exp.nn.convert import compensation_penalty, parameter_groups
from octo_exp.nn.guard import Verdict
from octo_exp.nn.select import Selection, never_ran
from octo_exp.quant.rounding import Clock
from octo_exp.runs.assemble.construct import construct
from octo_exp.runs.assemble.nets import float_net, native_net
from octo_exp.runs.assemble.optim import optimizer_of, schedule_of
from octo_exp.runs.assemble.update import update_rule, what_trains
from octo_exp.runs.lit import LitClassifier
from octo_exp.runs.native import Native
from octo_exp.runs.posttraining import PostTraining

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a run trains, and how it was made: kernels, quantised layers, the guard's verdict, the update rule.

    products: what multiplies int8 codes on this machine.
    after: what becomes of the trained net before it is tested, or None.
    """

    module: LitClassifier
    clock: Clock
    impl: str
    products: str
    converted: Selection
    verdict: Verdict | None
    rule: UpdateRule | None
    after: PostTraining | None

    def layers(self) -> dict[str, Any]:
        """Return the layers that multiplied int8 codes and by what, and why every other layer is float."""
        unused = never_ran(self.module.net)
        for name, reason in unused.items():
            log.warning("layer %s is not quantised: %s", name, reason)
        return {
            "quantized_layers": [name for name in self.converted.quantized if name not in unused],
            "float_layers": {**self.converted.floats, **unused},
            "int8_products": self.products if self.converted.quantized else None,
        }


def build_module(cfg: DictConfig, datamodule: DataModule) -> Built:
    """Net, quantised, with the weights it starts from; checked against the data before anything is trained."""
    scheme = construct("quant", cfg.quant)
    impl = resolve_impl(cfg.kernel.impl, _device_type(cfg))
    multiplier = backend(impl, _device_type(cfg)).multiplier
    log.info("kernel implementation: %s; int8 products: %s", impl, multiplier)
    clock = Clock(seed=cfg.seed)
    model = build_model(cfg.model)
    if isinstance(scheme, Native):
        net, converted, verdict = native_net(cfg, scheme, model, datamodule)
    else:
        training = scheme.training if isinstance(scheme, PostTraining) else scheme
        net, converted, verdict = float_net(cfg, training, model, datamodule, impl=impl, clock=clock)
    rule = update_rule(cfg, net, datamodule)
    optimizer: Callable[..., Optimizer] = optimizer_of(cfg)
    trained: list[Any] | None = None
    if rule is not None and isinstance(net, McuNet):
        rule.apply(net)
        optimizer, trained = partial(rule.build_optimizer, net), what_trains(net)
    module = LitClassifier(
        net=net,
        num_classes=datamodule.classes,
        optimizer=optimizer,
        scheduler=schedule_of(cfg),
        parameter_groups=parameter_groups if rule is None else rule.parameter_groups,
        penalty=compensation_penalty,
        trained=trained,
        speed_guard=None if verdict is None else asdict(verdict),
    )
    after = scheme if isinstance(scheme, PostTraining) else None
    return Built(
        module=module,
        clock=clock,
        impl=impl,
        products=multiplier,
        converted=converted,
        verdict=verdict,
        rule=rule,
        after=after,
    )


def _device_type(cfg: DictConfig) -> str:
    wanted = cfg.trainer.accelerator
    if wanted == "mps" or (wanted == "gpu" and torch.backends.mps.is_available()):
        raise UserError(
            f"trainer.accelerator={wanted}: Apple's GPU is not supported; leave it out, and the CPU's kernels run"
        )
    cuda = wanted in ("gpu", "cuda") or (wanted == "auto" and torch.cuda.is_available())
    return "cuda" if cuda else "cpu"
