"""Whether callbacks follow metrics that a run logs."""

from collections.abc import Mapping

from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from omegaconf import DictConfig

from octo_exp.base.errors import ConfigError
from octo_exp.runs.lit import LOGGED


def check_monitors(cfg: DictConfig, callbacks: Mapping[str, Callback]) -> None:
    """Raise ConfigError for a callback that follows a metric which nothing logs.

    Callbacks of others may log metrics of their own: with one of them, nothing is known.
    """
    silent = (ModelCheckpoint, EarlyStopping, ProgressBar)
    if not all(isinstance(one, silent) or type(one).__module__.startswith("octo_exp.") for one in callbacks.values()):
        return
    for name, callback in callbacks.items():
        if isinstance(callback, ModelCheckpoint | EarlyStopping) and callback.monitor is not None:
            _check(cfg, f"callbacks.{name}.monitor", callback.monitor, stops=isinstance(callback, EarlyStopping))


def _check(cfg: DictConfig, key: str, metric: str, *, stops: bool) -> None:
    if metric not in LOGGED:
        raise ConfigError(f"{key}={metric}: nothing logs it; choose one of {', '.join(LOGGED)}")
    if stops and metric.startswith("val/") and cfg.trainer.get("limit_val_batches", 1.0) == 0:
        raise ConfigError(f"{key}={metric}: trainer.limit_val_batches=0 leaves no validation; choose train/loss")
