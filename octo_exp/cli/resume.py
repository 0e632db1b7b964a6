"""`octo resume RUN [key=value ...]`: goes on with a run that was broken off, with its own settings."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from octo_exp.base.errors import UserError
from octo_exp.cli import train
from octo_exp.cli.words import path_and_settings, shows_help
from octo_exp.config.resumed import quoted


def main(arguments: Sequence[str]) -> NoReturn:
    """Go on with the run in the folder that is named, and exit."""
    if shows_help(arguments, __doc__):
        sys.exit(0)
    try:
        folder, settings = path_and_settings(arguments, what="a run's folder", example="octo resume RUN")
        words = [f"resume={quoted(folder)}", *settings]
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    train.main(words)
