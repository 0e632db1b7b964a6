"""`octo sweep [FILE.yaml] key=a,b`: a run for each combination, then one table."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from octo_exp.base.configs import sweeps_folder
from octo_exp.base.errors import ConfigError, UserError
from octo_exp.cli import train
from octo_exp.cli.words import path_and_settings


def main(arguments: Sequence[str]) -> NoReturn:
    """Train every combination, and exit."""
    words = list(arguments)
    try:
        if any("=" not in word and not word.startswith(("-", "~")) for word in words):
            example = "octo sweep FILE.yaml key=a,b"
            path, rest = path_and_settings(words, what="a sweep's file", example=example)
            words = [*_flags(path), *rest]
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    train.main(["-m", *words])


def _flags(path: str) -> list[str]:
    """Return the flags of a sweep's file: a path, or the name of one of the project's own."""
    file = Path(path).expanduser()
    if not file.is_file():
        own = sweeps_folder() / f"{path.removesuffix('.yaml')}.yaml"
        if not own.is_file():
            names = ", ".join(sorted(found.stem for found in sweeps_folder().glob("*.yaml")))
            raise ConfigError(f"there is no sweep {path}: give a yaml file, or one of {names}")
        file = own
    return ["-cd", str(file.absolute().parent), "-cn", file.stem]
