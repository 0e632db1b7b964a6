"""What a checkpoint knows of its run: whose it is, what was logged until then, how long it took."""

import json
import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from octo_exp.runs.callbacks.per_step import diverged
from octo_exp.runs.checkpoint import RUN, first_non_finite, run_of
from octo_exp.runs.history import MetricsFile


class RunRecord(Callback):
    """Writes a run's identity and progress into every checkpoint, and takes the progress up again.

    A checkpoint whose weights are not finite is refused, so the one before it stays.

    Args:
        identity: what `octo_exp.config.identity` says of the run, as plain values.
        continues: whether the history in the run's folder belongs to the checkpoint that is gone on from.

    Attributes:
        seconds: of training in earlier processes.
        metrics: the last value of every metric, of earlier processes.
        began: whether a batch was trained or tested; what is refused before that has done nothing.

    """

    def __init__(self, *, identity: Mapping[str, Any], continues: bool) -> None:
        self.seconds, self.began = 0.0, False
        self.metrics: dict[str, float] = {}
        self._identity, self._continues = dict(identity), continues
        self._started = time.monotonic()

    @property
    def total_seconds(self) -> float:
        """Return the seconds since the run began, those of earlier processes included up to their checkpoints."""
        return self.seconds + time.monotonic() - self._started

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Note that the run has begun."""
        self.began = True

    on_test_batch_start = on_train_batch_start

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the history first, then note its length: a checkpoint never knows more than the files beside it."""
        name = first_non_finite(checkpoint["state_dict"])
        if name is not None:
            raise diverged(trainer, f"{name.removeprefix('net.')} is not finite")
        histories = [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
        for history in histories:
            history.flush()
        # Text: the reader of checkpoints knows tensors and plain values, not what a later version may add here.
        checkpoint[RUN] = json.dumps(
            {
                **self._identity,
                "seconds": self.total_seconds,
                "rows": [history.rows for history in histories],
                "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
            }
        )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with what was logged."""
        if trainer.state.fn != "fit":
            return
        told = run_of(checkpoint)
        self.metrics = dict(told.get("metrics", {}))
        if self._continues:
            self.seconds = float(told.get("seconds", 0.0))
            histories = [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
            for history, rows in zip(histories, told.get("rows", ()), strict=False):
                history.go_on(rows)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give back the last values: schedulers and callbacks look at them, and so do the results."""
        # The property is Lightning's own dictionary.
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in self.metrics.items()})
