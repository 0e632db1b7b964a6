"""Trains, evaluates and accounts for one network: `python train.py --help`."""

import gc

from octo_exp.base import signals

# Hydra takes a while to import.
signals.end_at_once()
# Until there is a run nothing is thrown away, and looking for what might be takes a fifth of the time.
gc.disable()

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from octo_exp import cli


def _run(cfg: DictConfig) -> Any:
    gc.enable()
    from octo_exp.base.homes import settle_matplotlib, settle_temporary

    # Torch wants a folder for temporary files, and torchmetrics imports matplotlib.
    settle_temporary(Path(cfg.save_dir))
    settle_matplotlib()
    # Lightning and torch take seconds to import: only once the config is known to be right.
    from octo_exp.run import run

    return run(cfg)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> Any:
    """Runs one job; Hydra calls it once per combination with -m."""
    return cli.guarded(_run, cfg)


if __name__ == "__main__":
    cli.launch(main, config_dir=Path(__file__).parent / "conf")
