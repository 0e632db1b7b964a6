"""When checkpoints are written: at resume points (`fit_loop`), by time, by steps, at epochs' ends, on signals."""

import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from octo_exp.base import signals
from octo_exp.base.errors import UserError
from octo_exp.runs.fit_loop import ExactFitLoop


class LastCheckpoint(Checkpoint):
    """Keeps one file, from which a run goes on exactly.

    Args:
        dirpath: folder of the file.
        filename: without its suffix .ckpt.
        every_n_minutes: minutes between two writings at least, counted at ends of steps; None: not by time.
        every_n_train_steps: optimizer steps between two writings; None: not by steps.
        at_epoch_end: write after the last step of every epoch, its validation included.

    Attributes:
        path: of the file that was written last by this process, or None.

    Raises:
        UserError: an interval that is not positive.

    """

    def __init__(
        self,
        *,
        dirpath: str,
        filename: str,
        every_n_minutes: float | None,
        every_n_train_steps: int | None,
        at_epoch_end: bool,
    ) -> None:
        for name, value in (("every_n_minutes", every_n_minutes), ("every_n_train_steps", every_n_train_steps)):
            if value is not None and value <= 0:
                raise UserError(f"callbacks.last_checkpoint.{name}={value} must be above 0; null switches it off")
        self.path: Path | None = None
        self._file = Path(dirpath) / f"{filename}.ckpt"
        self._minutes, self._steps, self._at_epoch_end = every_n_minutes, every_n_train_steps, at_epoch_end
        self._written_at = time.monotonic()
        self._written_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count time; what the run goes on from is written already."""
        self._written_at, self._written_step = time.monotonic(), trainer.global_step

    def on_resume_point(self, trainer: Trainer, pl_module: LightningModule, *, stopping: bool) -> None:
        """Write where it is time, and where the process is asked to end."""
        if stopping or self._due(trainer):
            trainer.save_checkpoint(self._file)
            self.path, self._written_at, self._written_step = self._file, time.monotonic(), trainer.global_step

    def _due(self, trainer: Trainer) -> bool:
        loop = trainer.fit_loop
        if self._at_epoch_end and isinstance(loop, ExactFitLoop) and loop.ends_here:
            return True
        if self._steps is not None and trainer.global_step // self._steps > self._written_step // self._steps:
            return True
        return self._minutes is not None and time.monotonic() - self._written_at >= 60 * self._minutes

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """End inside a validation where the process is asked to end: whoever goes on validates anew."""
        if signals.asked() and not trainer.sanity_checking and trainer.state.fn == "fit":
            trainer.fit_loop.epoch_loop.stop_if_asked()


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, with what a validation makes it write put off to the resume point behind it.

    Args:
        dirpath: folder of the files.
        filename: without its suffix .ckpt; a pattern, as in Lightning.
        monitor: the metric that is compared after each validation.
        mode: max | min.
        save_top_k: files that are kept, -1 for all.

    """

    def __init__(self, *, dirpath: str, filename: str, monitor: str, mode: str, save_top_k: int) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._put_off = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is something to compare."""
        self._put_off = not trainer.sanity_checking

    def on_resume_point(self, trainer: Trainer, pl_module: LightningModule, *, stopping: bool) -> None:
        """Compare, and write where it is better."""
        if self._put_off:
            self._put_off = False
            super().on_validation_end(trainer, pl_module)
