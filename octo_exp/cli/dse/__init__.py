"""`octo dse`: searches machines for the training step of a network."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from octo_exp.cli.dse.search import start


def main(arguments: Sequence[str]) -> NoReturn:
    """Search as the arguments say, and exit."""
    sys.argv[1:] = arguments
    start()
