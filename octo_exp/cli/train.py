"""`octo train key=value ...`, and `python train.py`: one run, or with -m one for each combination."""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig

from octo_exp import config
from octo_exp.base.configs import conf_folder
from octo_exp.cli.words import Words


def _run(cfg: DictConfig) -> Any:
    gc.enable()
    from octo_exp.base.homes import settle_matplotlib, settle_temporary

    # Torch wants a folder for temporary files, and torchmetrics imports matplotlib.
    settle_temporary(Path(cfg.save_dir))
    settle_matplotlib()
    # Lightning and torch take seconds to import: only once the config is known to be right.
    from octo_exp.runs.run import run

    return run(cfg)


def _job(cfg: DictConfig) -> Any:
    return config.guarded(_run, cfg)


def start(config_dir: Path) -> NoReturn:
    """Run what sys.argv says of the configs in `config_dir`, and exit."""
    # Until there is a run nothing is thrown away, and looking for what might be takes a fifth of the time.
    gc.disable()
    main = hydra.main(version_base="1.3", config_path=str(config_dir.absolute()), config_name="train")(_job)
    config.launch(main, config_dir=config_dir)


def begin(arguments: Sequence[str]) -> NoReturn:
    """Run what the arguments say of the project's own configs, and exit."""
    # Whatever verb it was: a command that a message gives is one of this verb's.
    sys.argv[:] = ["octo train", *arguments]
    start(conf_folder())


def main(words: Words) -> NoReturn:
    """Run what the words say, and exit."""
    begin(words.rest)
