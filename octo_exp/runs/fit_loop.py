"""Lightning's fit loop, made to go on exactly: a checkpoint is written where a step is whole, and nothing is repeated.

Lightning (2.6) lets checkpoints be written in the middle of its own bookkeeping, and guesses from counters what is left
to do: a validation may run twice or never, an epoch's end twice (max_steps), a stop by a callback is forgotten. Here
are resume points, and what is left to do at one is part of the loop's state:

- a step is whole (optimizer, scheduler, its own logging) and its validation is due;
- a step and its validation are whole.

The end of an epoch lies behind the last point of the epoch: training metrics, `on_train_epoch_end` and schedulers by
epoch are done after it, by whichever process goes on.
"""

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar, Timer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException

from octo_exp.base import signals


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's callbacks, which a part of it has set."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


class _EpochLoop(_TrainingEpochLoop):
    """Steps of an epoch; calls `on_resume_point(trainer, module)` of every callback that has it.

    Attributes:
        validation_due: whether the step that was made last is still to be validated.

    """

    def __init__(self, trainer: Trainer, *, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps=min_steps, max_steps=max_steps)
        self.validation_due = False

    @property
    def _is_validation_done(self) -> bool:
        return not self.validation_due

    def reset(self) -> None:
        super().reset()
        # A validation that was broken off begins anew: its metrics were not kept.
        self.val_loop.restarting = False

    def advance(self, data_fetcher: Any) -> None:
        # Every resume point lies behind a step: there is nothing of it to finish.
        self.restarting = False
        if self.validation_due:
            return
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        self.validation_due = True
        self.stop_if_asked()
        try:
            super().on_advance_end(data_fetcher)
        except SIGTERMException:
            # Lightning's own handler was asked too; ours is asked below.
            if not signals.asked():
                raise
        self.validation_due = False
        self.trainer.fit_loop.resume_point()
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Write a checkpoint and raise Stopped where the process was asked to end; an accumulated step ends first."""
        if not signals.asked() or self._should_accumulate():
            return
        # From here on a signal is meant to break off the writing.
        self.trainer.fit_loop.resume_point(stopping=True)
        signals.check()

    def on_save_checkpoint(self) -> dict[str, Any]:
        return {
            **super().on_save_checkpoint(),
            "validation_due": self.validation_due,
            "should_stop": bool(self.trainer.should_stop),
            "limits": _limits(self.trainer),
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.validation_due = bool(state_dict.get("validation_due", False))
        # Who asks for more than there was is not stopped by what stopped the shorter run.
        if state_dict.get("limits") == _limits(self.trainer):
            self.trainer.should_stop = bool(state_dict.get("should_stop", False))


class ExactFitLoop(_FitLoop):
    """Epochs. An epoch that a checkpoint lies in is finished, also where no step of it is left."""

    def __init__(self, trainer: Trainer) -> None:
        given = trainer.fit_loop
        super().__init__(trainer, min_epochs=given.min_epochs, max_epochs=given.max_epochs)
        self.epoch_loop = _EpochLoop(trainer, min_steps=given.min_steps, max_steps=given.max_steps)
        self._unfinished = False

    def resume_point(self, *, stopping: bool = False) -> None:
        """Let callbacks write; in the middle of an accumulated step they cannot, for its gradients are not kept."""
        if self.epoch_loop._should_accumulate():
            return
        for callback in callbacks_of(self.trainer):
            hook = getattr(callback, "on_resume_point", None)
            if hook is not None:
                hook(self.trainer, self.trainer.lightning_module, stopping=stopping)

    @property
    def ends_here(self) -> bool:
        """Whether no further step of this epoch follows the one that was made last."""
        return bool(self.epoch_loop._is_training_done or (self.trainer.should_stop and self._can_stop_early))

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Note whether the checkpoint lies inside an epoch."""
        super().on_load_checkpoint(state_dict)
        progress = self.epoch_progress.current
        self._unfinished = isinstance(progress, _ProcessedTracker) and progress.started > progress.processed

    @property
    def done(self) -> bool:
        """Whether to leave the loop: not before the end of an epoch that was begun."""
        return not self._unfinished and super().done

    def on_advance_start(self) -> None:
        """Begin an epoch, or go on inside of one."""
        super().on_advance_start()
        if self.restarted_mid_epoch:
            # Lightning tells nobody that an epoch goes on; a bar would never be drawn.
            for callback in callbacks_of(self.trainer):
                if isinstance(callback, ProgressBar):
                    callback.on_train_epoch_start(self.trainer, self.trainer.lightning_module)

    def on_advance_end(self) -> None:
        """End an epoch."""
        self._unfinished = False
        # What belongs to the end of an epoch is done whole, schedulers on a metric too; the next one is a new one.
        self._restarting = False
        self.epoch_loop.restarting = False
        try:
            super().on_advance_end()
        except SIGTERMException:
            # As above: the next step asks for it, and behind the last one the run.
            if not signals.asked():
                raise


def _limits(trainer: Trainer) -> list[Any]:
    """What a run may be long, in plain values."""
    times = [
        callback.time_elapsed() + (callback.time_remaining() or 0.0)
        for callback in callbacks_of(trainer)
        if isinstance(callback, Timer)
    ]
    return [trainer.max_epochs, trainer.max_steps, *map(round, times)]


def make_exact(trainer: Trainer) -> Trainer:
    """Give a trainer the loop of this file; return it."""
    trainer.fit_loop = ExactFitLoop(trainer)
    return trainer
