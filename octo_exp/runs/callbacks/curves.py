"""Draws a run's learning curves when its training ends."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from octo_exp.base.errors import UserError
from octo_exp.runs.curve_plots import save_curves
from octo_exp.runs.history import MetricsFile


class Curves(Callback):
    """Writes curves_loss.png and curves_acc.png into `trainer.default_root_dir`, and shows them in W&B.

    They are drawn from the run's metrics.csv, which holds its whole history however often it was broken off.

    Raises:
        UserError: the run keeps no metrics.csv, or a picture cannot be written.

    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse, before training, what could not be drawn after it."""
        if not any(isinstance(logger, MetricsFile) for logger in trainer.loggers):
            raise UserError("callbacks.curves draws metrics.csv, which this run does not keep; leave logger.csv on")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        if not trainer.is_global_zero:
            return
        history = next(logger for logger in trainer.loggers if isinstance(logger, MetricsFile))
        pictures = save_curves(Path(trainer.default_root_dir), history.history)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for picture in pictures:
                    logger.log_image(key=f"curves/{picture.stem}", images=[str(picture)])
