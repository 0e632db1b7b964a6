"""`octo dse [key=value ...]`: searches machines for the training step of a network."""

import sys
from typing import NoReturn

from octo_exp.cli.dse.search import start
from octo_exp.cli.words import Words


def main(words: Words) -> NoReturn:
    """Search as the words say, and exit."""
    sys.argv[1:] = words.rest
    start()
