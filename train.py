"""Trains, evaluates and accounts for one network: `python train.py --help`."""

import gc

from octo_exp.base import signals

# Hydra takes a while to import.
signals.end_at_once()
# Until there is a run nothing is thrown away, and looking for what might be takes a fifth of the time.
gc.disable()

from pathlib import Path

from octo_exp.cli.train import start

if __name__ == "__main__":
    start(Path(__file__).parent / "conf")
