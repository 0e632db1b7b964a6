"""Int8 layers in other people's LightningModules, by one callback of the Trainer."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from octo_exp.errors import UserError
from octo_exp.library import kernels_for, resolve
from octo_exp.nn.convert import compensation_penalty, convert
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme

log = logging.getLogger(__name__)


class Int8(Callback):
    """Quantises a LightningModule's layers before its optimizers are made and before a checkpoint's weights are loaded.

    `Trainer(callbacks=[Int8("octo", bits=4)])`. Noise is keyed by (seed, batch), so that a run that goes on from a
    checkpoint equals one that never stopped. What the compensation adds to the loss is added to the gradients. LAC's
    parameters have a learning rate of their own where `configure_optimizers` takes
    `octo_exp.parameter_groups(self, lr)`.

    Args:
        scheme: the name of one, or one (`octo_exp.scheme`).
        impl: kernel implementation: auto, torch, triton or reference.
        seed: of stochastic rounding.
        input_shape: (C, H, W) of one image, for lazy layers and parameters per element.
        changes: of the scheme, as `octo_exp.scheme` takes them.

    Raises UserError in `setup` where nothing can be quantised, and where a checkpoint's layers had another scheme.

    """

    def __init__(
        self,
        scheme: str | Scheme = "octo",
        *,
        impl: str = "auto",
        seed: int = 0,
        input_shape: tuple[int, ...] | None = None,
        **changes: Any,
    ) -> None:
        # Wrong names are told where they stand, not when training begins.
        self.scheme = resolve(scheme, changes)
        self.impl, self.input_shape = impl, input_shape
        self.clock = Clock(seed=seed)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Convert the module; once, whatever stages follow."""
        if any(isinstance(module, QuantLayer) for module in pl_module.modules()):
            return
        device = trainer.strategy.root_device.type
        impl = kernels_for(device, self.impl)
        convert(pl_module, self.scheme, impl=impl, clock=self.clock, input_shape=self.input_shape)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the validation that Lightning tries first: its ranges are those that training stores."""
        layers = [module for module in pl_module.modules() if isinstance(module, QuantLayer)]
        stored = [layer.quantizer_x for layer in layers if layer.quantizer_x is not None]
        if trainer.num_sanity_val_steps and any(not bool(quantizer.count) for quantizer in stored):
            trainer.num_sanity_val_steps = 0
            log.info("Int8: no validation before the first batch, as no range is stored yet")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the step that keys the noise: batches are counted over the whole run."""
        self.clock.step = trainer.fit_loop.total_batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Give the compensation's parameters the gradient of what they add to the loss."""
        penalty = compensation_penalty(pl_module)
        if penalty is not None:
            share = penalty / trainer.accumulate_grad_batches
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            (share if scaler is None else scaler.scale(share)).backward()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on must have in common with this one."""
        return {"seed": self.clock.seed, **dataclasses.asdict(self.scheme)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse another scheme or seed than the checkpoint's."""
        here, there = _flat(self.state_dict()), _flat(state_dict)
        differ = [key for key in (*there, *here) if here.get(key) != there.get(key)]
        if differ:
            key = differ[0]
            raise UserError(
                f"Int8: {key} is {here.get(key)}, and the checkpoint's was {there.get(key)}; a run goes on with the "
                "settings it had"
            )


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
