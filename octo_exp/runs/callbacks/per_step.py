"""Per-step duties: key the randomness, count images a second, stop at a loss that is not finite."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.quant.rounding import Clock, keyed_seed
from octo_exp.runs.checkpoint import first_non_finite
from octo_exp.runs.lit import network_of


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

    A process that goes on with a run warms up too. Result: train/images_per_s over all other steps (over all steps
    where there are no others, None without any).
    """

    def __init__(self, *, skip: int) -> None:
        self.skip = skip
        # (images, seconds) of steps that warmed up, and of the others.
        self._warming, self._counted = (0, 0.0), (0, 0.0)
        self._seen = 0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock: a run that goes on inside an epoch has no start of it."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again: validation may come in mid-epoch."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's images and the seconds since the one before it."""
        now = time.perf_counter()
        step = (len(batch[1]), now - self._since)
        if self._seen < self.skip:
            self._warming = _plus(self._warming, step)
        else:
            self._counted = _plus(self._counted, step)
        self._seen += 1
        self._since = now

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"warming": list(self._warming), "counted": list(self._counted)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after earlier steps."""
        self._warming, self._counted = tuple(state_dict["warming"]), tuple(state_dict["counted"])

    @property
    def results(self) -> dict[str, float | None]:
        """Return the rate over the whole training."""
        images, seconds = self._counted if self._counted[0] else self._warming
        return {"train/images_per_s": images / seconds if images else None}


def _plus(sums: tuple[int, float], step: tuple[int, float]) -> tuple[int, float]:
    return sums[0] + step[0], sums[1] + step[1]


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
    """Stops a run at the first loss that is NaN or infinite, in training, validation or test; names where it began."""

    def __init__(self) -> None:
        self._images: Tensor | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch at hand."""
        self._images = batch[0]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Raise UserError where the loss is not finite."""
        if not bool(torch.isfinite(loss)):
            net = network_of(pl_module, "finite_guard")
            layer = "unknown" if self._images is None else first_non_finite_layer(net, self._images)
            raise diverged(trainer, f"the loss is {loss.item()}", f"; first non-finite output: layer {layer}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise UserError where a metric of the validation is not finite."""
        self._check_metrics(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise UserError where a metric of the test is not finite."""
        self._check_metrics(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise UserError where a weight is not finite: the last update has been through no loss."""
        name = first_non_finite(network_of(pl_module, "finite_guard").state_dict())
        if name is not None:
            raise diverged(trainer, f"{name} is not finite")

    def _check_metrics(self, trainer: Trainer) -> None:
        for name, value in trainer.callback_metrics.items():
            if not bool(torch.isfinite(value).all()):
                raise diverged(trainer, f"{name} is {float(value)}")


def diverged(trainer: Trainer, what: str, where: str = "") -> UserError:
    """Return the one line for a run that has diverged: what is not finite, when, what is left, the remedy."""
    # Written by this process, or what it went on from.
    written = [path for callback in trainer.checkpoint_callbacks if (path := getattr(callback, "path", None))]
    checkpoint = written[-1] if written else trainer.ckpt_path or "none written yet"
    return UserError(
        f"{what} at epoch {trainer.current_epoch}, step {trainer.global_step}{where}; last good checkpoint: "
        f"{checkpoint}; lower optim.optimizer.lr (with update=, update.lr) or set trainer.gradient_clip_val"
    )
