"""`octo export RUN format=...`: see octo_exp.exports."""

from collections.abc import Sequence

from octo_exp.cli.words import paths_of
from octo_exp.exports.__main__ import main as export


def main(arguments: Sequence[str]) -> int:
    """Export the run that is named; return the exit code."""
    paths = paths_of(arguments)
    return export([f"run={word}" if word in paths else word for word in arguments])
