"""Trains, evaluates and accounts for one network: `python train.py --help`."""

from octo_exp.base import signals

# Hydra takes a while to import.
signals.end_at_once()

from pathlib import Path

from octo_exp.command.train import start

if __name__ == "__main__":
    start(Path(__file__).parent / "conf")
