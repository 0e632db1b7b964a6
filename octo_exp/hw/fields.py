"""Checks that values read from a file share: field names, numbers, one line per mistake."""

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from octo_exp.base.errors import UserError

T = TypeVar("T")

STATUSES = ("verified", "assumed")


def named_fields(what: str) -> Callable[[type[T]], type[T]]:
    """Decorate a keyword-only dataclass: a missing or unknown field is one `UserError`, with the nearest right name.

    The constructor keeps its signature; copying and pickling do not pass through it. `what` names the value in the
    message, followed by the value of its field `name` where that is given.
    """

    def decorate(cls: type[T]) -> type[T]:
        construct: Callable[..., None] = cls.__init__

        @functools.wraps(construct)
        def checked(self: T, /, **given: object) -> None:
            title = f"{what} {given['name']!r}" if "name" in given else what
            _check_names(title, dataclasses.fields(cls), given)  # type: ignore[arg-type]
            construct(self, **given)

        type.__setattr__(cls, "__init__", checked)
        return cls

    return decorate


def check_name(title: str, name: object) -> None:
    """Raise `UserError` unless `name` can be a part of log keys and file names."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{title}: name must be made of letters, digits, '_', '.' and '-'")


def checked_sources(
    title: str, sources: Mapping[str, Mapping[str, str]], described: list[str]
) -> dict[str, dict[str, str]]:
    """Plain copy of `sources`, one {source, status} for each described field and none for another, else `UserError`."""
    if not isinstance(sources, Mapping):
        raise UserError(f"{title}: sources must map field names to {{source, status}}, got {sources!r}")
    for name in sources:
        if name not in described:
            raise UserError(f"{title}: sources names {name!r}, which is no number given here")
    for name in described:
        entry = sources.get(name)
        if not isinstance(entry, Mapping) or set(entry) != {"source", "status"} or not entry["source"]:
            raise UserError(f"{title}: sources.{name} must be {{source: <text>, status: {' | '.join(STATUSES)}}}")
        if entry["status"] not in STATUSES:
            raise UserError(f"{title}: sources.{name}.status must be {' or '.join(STATUSES)}, got {entry['status']!r}")
    return {name: {"source": str(sources[name]["source"]), "status": sources[name]["status"]} for name in described}


def _check_names(title: str, fields: tuple[dataclasses.Field[Any], ...], given: dict[str, object]) -> None:
    known = [field.name for field in fields]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(known)}"
            raise UserError(f"{title}: unknown field {name!r}; {hint}")
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in given]
    if missing:
        raise UserError(f"{title}: missing field {missing[0]!r}; give every one of {', '.join(missing)}")
