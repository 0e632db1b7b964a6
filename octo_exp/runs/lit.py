"""The LightningModule: loss, step, metrics. It is given the net, the optimizer and what the net adds to the loss."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from octo_exp.base.errors import UserError

ParameterGroups = Callable[[Any], Sequence[Mapping[str, Any]]]
Penalty = Callable[[nn.Module], Tensor | None]
# (optimizer, total_steps) -> Lightning's `lr_scheduler`: scheduler, interval, frequency, monitor. total_steps() counts
# the steps of the run.
Schedule = Callable[[Optimizer, Callable[[], int]], dict[str, Any]]

# What a fit logs, and a callback or a scheduler may follow.
LOGGED = ("train/loss", "train/acc", "val/loss", "val/acc")


def warmup_cosine(
    optimizer: Optimizer, *, total_steps: int, warmup_fraction: float, from_zero: bool = False
) -> LRScheduler:
    """Linear warm-up over a fraction of the steps, then cosine decay to 0; a factor on each group's own rate.

    The first of w warm-up steps has the factor 1/w and the last 1; with `from_zero` they have 0 and (w - 1)/w.
    """
    warmup = max(1, round(total_steps * warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + (not from_zero)) / warmup
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def _schedulers(found: Any) -> list[Any]:
    """What LightningModule.lr_schedulers gives, as a list."""
    return found if isinstance(found, list) else [] if found is None else [found]


def network_of(module: LightningModule, callback: str) -> nn.Module:
    """The network of anybody's LightningModule, its `net`; UserError names the callback that asks for it."""
    net = getattr(module, "net", None)
    if not isinstance(net, nn.Module):
        raise UserError(f"{callback}: {type(module).__name__} has no module 'net'; remove the {callback} callback")
    return net


class LitClassifier(LightningModule):
    """Cross-entropy training of `net` with accuracy by torchmetrics.

    Args:
        net: images [N, C, H, W] -> logits [N, classes].
        num_classes: of the data.
        optimizer: parameter groups -> optimizer.
        scheduler: see `Schedule`; None: the rate stays.
        parameter_groups: net -> optimizer groups (LAC's parameters have a rate of their own).
        penalty: net -> what is added to the training loss, or None.
        trained: what of the net trains where that is not all, as plain values: a checkpoint goes on only where it was
            the same. None: everything.
        speed_guard: the verdict that the net was made by, as plain values: checkpoints keep it. None: no guard.

    Log keys: {train,val,test}/loss, {train,val,test}/acc (fraction in [0, 1]), each after `prefix`, which is empty
    unless somebody sets it.

    """

    def __init__(
        self,
        *,
        net: nn.Module,
        num_classes: int,
        optimizer: Callable[..., Optimizer],
        scheduler: Schedule | None,
        parameter_groups: ParameterGroups,
        penalty: Penalty,
        trained: list[Any] | None = None,
        speed_guard: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net: nn.Module = net
        self.prefix = ""
        self._optimizer, self._scheduler = optimizer, scheduler
        self._parameter_groups, self._penalty, self._trained = parameter_groups, penalty, trained
        self._speed_guard = speed_guard
        self._accuracy_of = {
            stage: MulticlassAccuracy(num_classes, average="micro") for stage in ("train", "val", "test")
        }
        self.accuracy = nn.ModuleDict({f"{stage}_acc": metric for stage, metric in self._accuracy_of.items()})
        # Checkpoints inside an epoch keep what was counted; a validation is never gone on with.
        self._accuracy_of["train"].persistent(True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.net(x)
        return logits

    def _step(self, batch: tuple[Tensor, Tensor], stage: str, net: nn.Module | None = None) -> Tensor:
        images, labels = batch
        logits = (net or self.net)(images)
        loss = F.cross_entropy(logits, labels)
        metric = self._accuracy_of[stage]
        metric.update(logits, labels)
        self.log(f"{self.prefix}{stage}/loss", loss, prog_bar=stage == "train", batch_size=len(labels))
        if stage != "train":
            self.log(
                f"{self.prefix}{stage}/acc",
                metric,
                on_step=False,
                on_epoch=True,
                prog_bar=stage == "val",
                batch_size=len(labels),
            )
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the task loss plus the net's penalty."""
        loss, penalty = self._step(batch, "train"), self._penalty(self.net)
        return loss if penalty is None else loss + penalty

    def on_train_start(self) -> None:
        """Give the optimizer the rate that the schedule has for this step: a longer one than before may start here.

        UserError for a schedule that ends before the run does: torch would tell it in the middle.
        """
        for config in self.trainer.lr_scheduler_configs:
            planned = getattr(config.scheduler, "total_steps", None)
            if planned is None or config.interval != "step":
                continue
            steps = self.trainer.estimated_stepping_batches // config.frequency
            if steps > planned:
                raise UserError(
                    f"optim.scheduler: {type(config.scheduler).__name__} was planned for {planned} steps and the run "
                    f"has {steps}; keep the length that it was planned for, or start anew with init_from="
                )
        for scheduler in _schedulers(self.lr_schedulers()):
            if isinstance(scheduler, LambdaLR) and scheduler.last_epoch > 0:
                for group, base, factor in zip(
                    scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
                ):
                    group["lr"] = base * factor(scheduler.last_epoch)

    def on_train_epoch_end(self) -> None:
        """Log the training accuracy, also of an epoch that was begun by another process."""
        metric = self._accuracy_of["train"]
        self.log(f"{self.prefix}train/acc", metric.compute(), prog_bar=True)
        metric.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log validation loss and accuracy; before any training, of a copy that takes its ranges from the batch."""
        untrained = self._trainer is not None and self.trainer.sanity_checking
        self._step(batch, "val", copy.deepcopy(self.net).train() if untrained else None)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log test loss and accuracy."""
        self._step(batch, "test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what trains, and what the net was made by."""
        checkpoint |= {"trained": self._trained, "speed_guard": self._speed_guard}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint of which something else was trained."""
        going_on = self._trainer is not None and self.trainer.state.fn == "fit"
        if going_on and checkpoint.get("trained") != self._trained:
            raise UserError(
                "ckpt: what trained there is not what would train here; give the run's own update= and init_from="
            )
        # A metric does not know that what it has loaded was counted (torchmetrics warns of an empty one).
        self._accuracy_of["train"]._update_count = 1

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule."""
        optimizer = self._optimizer(self._parameter_groups(self.net))
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer, self._total_steps)}

    def _total_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)
