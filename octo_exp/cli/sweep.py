"""`octo sweep [FILE.yaml] key=a,b`: a run for each combination, then one table.

FILE.yaml is a sweep of your own, or the name of one of the project's: transfer, mcu_transfer. Settings are those of
`octo train --help`; of several values a run each is made.
"""

from pathlib import Path
from typing import NoReturn

from octo_exp.base.configs import sweeps_folder
from octo_exp.base.errors import ConfigError
from octo_exp.cli import train
from octo_exp.cli.words import Words


def main(words: Words) -> NoReturn:
    """Train every combination, and exit."""
    flags = [] if words.path is None else _flags(words.path)
    train.begin(["-m", *flags, *words.rest])


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
