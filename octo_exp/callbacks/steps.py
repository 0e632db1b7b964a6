"""Per-step duties: key the randomness, count images a second, stop at a loss that is not finite."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from octo_exp.errors import UserError
from octo_exp.quant.rounding import Clock, keyed_seed


class StepClock(Callback):
    """Keys everything random in a step (stochastic rounding, dropout) by (seed, step), so a resumed run repeats it.

    A step here is a batch, counted over the whole run: the batches of one accumulated step draw different noise.
    """

    def __init__(self, *, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the clock's step and torch's global generators."""
        self.clock.step = trainer.fit_loop.total_batch_idx
        torch.manual_seed(keyed_seed(self.clock.seed, "step", self.clock.step))


class Throughput(Callback):
    """Images a second of training, data loading included, validation not; the first `skip` steps warm up.

    Result: train/images_per_s over all later steps (over all steps where there are no later ones, None without any).
    """

    def __init__(self, *, skip: int) -> None:
        self.skip = skip
        self._steps: list[tuple[int, float]] = []
        self._since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again: validation may come in mid-epoch."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch's images and the seconds since the one before it."""
        now = time.perf_counter()
        self._steps.append((len(batch[1]), now - self._since))
        self._since = now

    @property
    def results(self) -> dict[str, float | None]:
        """Return the rate over the whole training."""
        counted = self._steps[self.skip :] or self._steps
        seconds = sum(s for _, s in counted)
        return {"train/images_per_s": sum(n for n, _ in counted) / seconds if counted else None}


def first_non_finite_layer(net: nn.Module, images: Tensor) -> str:
    """Return the name of the first leaf module whose output holds a NaN or infinity, or "the loss itself"."""
    found: list[str] = []

    def check(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    leaves = [
        (name, module) for name, module in net.named_modules() if not list(module.children()) or _has_weight(module)
    ]
    hooks = [module.register_forward_hook(check(name)) for name, module in leaves]
    try:
        with torch.no_grad():
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the loss itself"


def _has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), Tensor)


class FiniteGuard(Callback):
    """Stops training at the first loss that is NaN or infinite, names the layer, keeps the last checkpoint."""

    def __init__(self) -> None:
        self._images: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch at hand."""
        self._images = batch[0]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Raise UserError where the loss is not finite."""
        if bool(torch.isfinite(loss)):
            return
        layer = first_non_finite_layer(pl_module.net, self._images)
        # The last of these callbacks writes after every epoch (conf/callbacks/default.yaml).
        written = [path for c in trainer.checkpoint_callbacks if (path := getattr(c, "best_model_path", ""))]
        checkpoint = written[-1] if written else "none written yet"
        raise UserError(
            f"the loss is {loss.item()} at epoch {trainer.current_epoch}, step {trainer.global_step}; first non-finite "
            f"output: layer {layer}; last good checkpoint: {checkpoint}; lower optim.optimizer.lr (with update=, "
            "update.lr) or set trainer.gradient_clip_val"
        )
