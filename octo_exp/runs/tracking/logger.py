"""A run's page in W&B, as Lightning's logger: it never stops a run, and costs it a few seconds at most."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from octo_exp.runs.tracking.session import Later, Mode, Session


class WandbRun(WandbLogger):
    """One W&B run. What is logged goes through a queue to a thread that talks to W&B, so nothing of it is waited for.

    `experiment` stands for W&B's own run: its methods may be called (`experiment.summary.update(...)`), arrive in
    order, and return None. When W&B fails, one line is logged; the run goes on offline where it can, else without.
    Call `close` at the end: it ends W&B's process as well, and the next job makes a run of its own.

    Args:
        project: as in `wandb.init`, as entity, name, group, tags and job_type are; null: W&B's own default.
        save_dir: its folder `wandb` holds the run's files.
        log_model: upload checkpoints (true: at the end; all: as they are written).
        mode: online | offline | disabled. Online becomes offline where W&B cannot be reached.
        id: of the run that goes on; null: a new one.
        resumed_from: what the run goes on from, into its config; null: nothing.
        wait_s: seconds that W&B may cost the run in all, its last upload included.
        online_s: seconds for the server's first answer; meanwhile the run goes on.

    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        save_dir: str,
        name: str | None,
        group: str | None,
        tags: Sequence[str] | None,
        job_type: str | None,
        log_model: Literal["all"] | bool,
        mode: Mode,
        id: str | None,
        resumed_from: str | None,
        wait_s: float,
        online_s: float,
    ) -> None:
        # Chosen here, not by W&B: a checkpoint can hold it before W&B has started.
        self._run_id = id or secrets.token_hex(4)
        super().__init__(
            project=project,
            save_dir=save_dir,
            name=name,
            id=self._run_id,
            log_model=log_model,
            checkpoint_name=f"model-{self._run_id}",
            entity=entity,
            group=group,
            tags=tags,
            job_type=job_type,
        )
        # Lightning passes it on even when it is None, and W&B warns of it.
        self._wandb_init.pop("anonymous")
        self._mode = mode
        self._resumed_from = resumed_from
        self._wait_s = wait_s
        self._online_s = online_s
        self._session: Session | None = None

    @property
    def run_id(self) -> str:
        """Return the run's id; starts nothing."""
        return self._run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> Later:
        """Return what stands for W&B's run, started at the first use."""
        return Later(self._started().send)

    def _started(self) -> Session:
        if self._session is None:
            self._session = Session(self._wandb_init, mode=self._mode, wait_s=self._wait_s, online_s=self._online_s)
            if self._resumed_from is not None:
                self.experiment.config.update({"resumed_from": self._resumed_from}, allow_val_change=True)
        return self._session

    def close(self, *, failed: bool = False) -> None:
        """Finish W&B's run and end its process, within what is left of `wait_s`; what is logged later begins anew."""
        session, self._session = self._session, None
        if session is not None:
            session.close(exit_code=int(failed))

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        # These make files before they log.
        try:
            yield
        except Exception as error:
            self._started().failed(error)

    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Log a table, see Lightning."""
        with self._harmless():
            super().log_table(*args, **kwargs)

    def log_image(self, *args: Any, **kwargs: Any) -> None:
        """Log images, see Lightning."""
        with self._harmless():
            super().log_image(*args, **kwargs)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Upload checkpoints with log_model=all."""
        with self._harmless():
            super().after_save_checkpoint(checkpoint_callback)

    def finalize(self, status: str) -> None:
        """Upload checkpoints with log_model=true. The run stays open: a test follows a fit."""
        if status == "success" and self._checkpoint_callbacks:
            with self._harmless():
                for callback in self._checkpoint_callbacks.values():
                    self._scan_and_log_checkpoints(callback)

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process opens W&B's run of the same id for itself.
        return {**self.__dict__, "_session": None}


def default_mode() -> str:
    """Return WANDB_MODE, else online where there is a WANDB_API_KEY, else offline."""
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
