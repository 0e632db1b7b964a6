"""Int8 layers in other people's LightningModules, by one callback of the Trainer."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.facade.training import kernels_for, resolve
from octo_exp.nn.convert import compensation_penalty, convert
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.quantizer import Quantizer
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

    Raises UserError in `setup` where nothing can be quantised, where the module or a checkpoint has another scheme, and
    where the Trainer's precision leaves no float32 weights.

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
        """Convert the module; once, whatever stages follow, and behind the hooks that may make its layers."""
        if not any(is_overridden(hook, pl_module, LightningModule) for hook in ("setup", "configure_model")):
            self._convert(trainer, pl_module)
            return

        def configure_model() -> None:
            del pl_module.configure_model
            pl_module.configure_model()
            self._convert(trainer, pl_module)

        # The last that Lightning calls before it loads a checkpoint's weights.
        pl_module.configure_model = configure_model  # type: ignore[method-assign]

    def _convert(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.scheme.is_float and trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"Int8: precision={trainer.precision} leaves no float32 weights to learn; take 32-true or bf16-mixed"
            )
        layers = {name: module for name, module in pl_module.named_modules() if isinstance(module, QuantLayer)}
        if not layers:
            impl = kernels_for(trainer.strategy.root_device.type, self.impl)
            convert(pl_module, self.scheme, impl=impl, clock=self.clock, input_shape=self.input_shape)
        for name, layer in layers.items():
            there, here = map(dataclasses.asdict, (layer.scheme, self.scheme.for_layer(layer.layer_name)))
            for key, mine, theirs in _differences(here, there):
                raise UserError(
                    f"Int8: {key} is {mine}, and in {name}, which is quantised already, {theirs}; give Int8 that "
                    "scheme, or a module that is float"
                )
        for module in pl_module.modules():
            if isinstance(module, QuantLayer | Quantizer):
                # Quantised for another Trainer or by hand: this one counts its batches.
                module.clock = self.clock

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the validation that Lightning tries first: its ranges are those that training stores."""
        layers = [module for module in pl_module.modules() if isinstance(module, QuantLayer)]
        stored = [q for layer in layers if (q := layer.quantizer_x) is not None and q.stored]
        if trainer.num_sanity_val_steps and any(not bool(q.count) for q in stored):
            trainer.num_sanity_val_steps = 0
            log.info("Int8: no validation before the first batch, as no range is stored yet")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the step that keys the noise: batches are counted over the whole run."""
        self.clock.step = trainer.fit_loop.total_batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Give the compensation's parameters the gradient of what they add to the loss."""
        penalty = compensation_penalty(pl_module)
        # Without gradients where all of it is frozen.
        if penalty is not None and penalty.requires_grad:
            share = penalty / trainer.accumulate_grad_batches
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            (share if scaler is None else scaler.scale(share)).backward()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on must have in common with this one."""
        return {"seed": self.clock.seed, **dataclasses.asdict(self.scheme)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse another scheme or seed than the checkpoint's."""
        for key, mine, theirs in _differences(self.state_dict(), state_dict):
            raise UserError(
                f"Int8: {key} is {mine}, and the checkpoint's was {theirs}; a run goes on with the settings it had"
            )


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each field that differs, with both values."""
    mine, theirs = _flat(here), _flat(there)
    for key in dict.fromkeys((*theirs, *mine)):
        if mine.get(key) != theirs.get(key):
            yield key, mine.get(key), theirs.get(key)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
