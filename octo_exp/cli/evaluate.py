"""`octo eval RUN [key=value ...]`: tests a trained network again, with its own settings and those given beside."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from octo_exp.base.errors import UserError
from octo_exp.cli import train
from octo_exp.cli.words import path_and_settings, shows_help
from octo_exp.config.resumed import evaluation


def main(arguments: Sequence[str]) -> NoReturn:
    """Test the network of the run that is named, in a new folder, and exit."""
    if shows_help(arguments, __doc__):
        sys.exit(0)
    try:
        folder, settings = path_and_settings(arguments, what="a run's folder", example="octo eval RUN")
        words = evaluation(folder, settings)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    train.main(words)
