"""`octo export RUN format=...`: see octo_exp.export."""

from collections.abc import Sequence

from octo_exp.export.__main__ import main as export


def main(arguments: Sequence[str]) -> int:
    """Export the run that is named; return the exit code."""
    return export([word if "=" in word or word.startswith("-") else f"run={word}" for word in arguments])
