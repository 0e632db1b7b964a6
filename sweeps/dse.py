"""Searches machines for the training step of a network: `python sweeps/dse.py --help`."""

import sys
from pathlib import Path

# As a program this file has its own folder on the path alone.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from octo_exp.cli.dse.search import start

if __name__ == "__main__":
    start()
