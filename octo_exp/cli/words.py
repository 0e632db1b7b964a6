"""The one path that a verb may take, and the settings beside it."""

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from octo_exp.base.errors import ConfigError


def shows_help(arguments: Sequence[str], text: str | None) -> bool:
    """Print what a verb says of itself where that is asked for; whether it was."""
    asked = bool(set(arguments) & {"-h", "--help"})
    if asked:
        sys.stdout.write(text or "")
    return asked


def paths_of(arguments: Sequence[str]) -> list[str]:
    """Return the words that are paths: those without `=`, or where there are none, names with it of what exists."""
    words = [word for word in arguments if not word.startswith(("-", "~"))]
    plain = [word for word in words if "=" not in word]
    return plain or [word for word in words if _exists(word)]


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:
        # A setting may be longer than any file's name.
        return False


def path_and_settings(arguments: Sequence[str], *, what: str, example: str) -> tuple[str, list[str]]:
    """Split words into the path and the rest, flags included; ConfigError where there is not exactly one path."""
    paths = paths_of(arguments)
    if len(paths) != 1:
        raise ConfigError(f"{len(paths)} words name {what}, one must: {example}")
    rest = list(arguments)
    rest.remove(paths[0])
    return paths[0], rest


def values_of(settings: Sequence[str], known: Sequence[str], *, needed: Sequence[str], example: str) -> dict[str, str]:
    """Read `key=value` words; ConfigError for another key, one given twice, and one that is needed and missing."""
    values: dict[str, str] = {}
    for word in settings:
        key, _, value = word.partition("=")
        if key not in known:
            raise ConfigError(f"{unknown('setting', key, known)}; {example}")
        if not value:
            raise ConfigError(f"'{word}' gives no value: {example}")
        if key in values:
            raise ConfigError(f"{key}= is given twice: {example}")
        values[key] = value
    missing = [key for key in needed if key not in values]
    if missing:
        raise ConfigError(f"{missing[0]}= must be given: {example}")
    return values


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the line for a name that there is not: the nearest right one, and all there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    nearest = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {what} '{name}': {nearest}choose one of {', '.join(names)}"
