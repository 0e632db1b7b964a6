"""The words behind a verb: one path that it may take, and settings; what does not fit is one line."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from octo_exp.base.errors import ConfigError
from octo_exp.base.files import expanded
from octo_exp.cli.verbs import VERBS, Verb, usage_of

# Hydra's flags that a value follows.
_VALUED = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What was typed behind a verb.

    path: its path, or None. values: of its own settings. rest: of a verb that takes a run's settings those, and flags.
    """

    path: str | None
    values: Mapping[str, str]
    rest: Sequence[str]

    @property
    def given_path(self) -> str:
        """Return the path of a verb that must have one."""
        assert self.path is not None
        return self.path


def read(name: str, arguments: Sequence[str]) -> Words:
    """Read the words behind a verb; ConfigError for any that it does not take, with how it is called."""
    verb, usage = VERBS[name], usage_of(name)
    path, rest = _path_and_rest(verb, arguments, usage)
    if verb.is_open:
        return Words(path=path, values={}, rest=rest)
    return Words(path=path, values=_values(verb, rest, usage), rest=())


def _path_and_rest(verb: Verb, arguments: Sequence[str], usage: str) -> tuple[str | None, list[str]]:
    if verb.path is None:
        return None, list(arguments)
    paths = paths_of(arguments)
    if len(paths) > 1:
        raise ConfigError(f"'{paths[1]}' is a word too many: {usage}")
    if not paths:
        if verb.takes_path:
            raise ConfigError(f"{verb.path} is missing: {usage}")
        return None, list(arguments)
    if not verb.is_name and not expanded(paths[0]).exists():
        raise ConfigError(f"{paths[0]}: there is no such file or folder: {usage}")
    rest = list(arguments)
    rest.remove(paths[0])
    return paths[0], rest


def paths_of(arguments: Sequence[str]) -> list[str]:
    """Return the words that are paths: those without `=`, or where there are none, names with it of what exists."""
    after_flag = [False, *(word in _VALUED for word in arguments)]
    words = [
        word
        for word, is_value in zip(arguments, after_flag, strict=False)
        if not is_value and not word.startswith(("-", "~"))
    ]
    plain = [word for word in words if "=" not in word]
    return plain or [word for word in words if _exists(word)]


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError:
        # A setting may be longer than any file's name.
        return False


def _values(verb: Verb, settings: Sequence[str], usage: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in settings:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"'{word}' is no setting key=value: {usage}")
        if key not in (*verb.known, *verb.former):
            raise ConfigError(f"{unknown('setting', key, verb.known)}: {usage}")
        if not value:
            raise ConfigError(f"'{word}' gives no value: {usage}")
        if key in values:
            raise ConfigError(f"{key}= is given twice: {usage}")
        _check_choice(verb, key, value, usage)
        values[key] = value
    missing = next((word for word in verb.needs if word.partition("=")[0] not in values), None)
    if missing is not None:
        raise ConfigError(f"{missing.partition('=')[0]}= is missing: {usage}")
    return values


def _check_choice(verb: Verb, key: str, value: str, usage: str) -> None:
    choices = verb.choices.get(key)
    if choices and value not in choices:
        raise ConfigError(f"{unknown(key, value, choices)}: {usage}")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the line for a name that there is not: the nearest right one, and all there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    nearest = f"did you mean '{near[0]}'? " if near else ""
    choice = f"choose one of {', '.join(names)}" if names else "there is none"
    return f"unknown {what} '{name}': {nearest}{choice}"
