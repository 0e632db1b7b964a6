"""Typed access to the dicts of a file: every field must be there, none may be more, and types are exact.

Dicts come from outside, so messages name fields and types, never values, for a value can be anything.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from octo_exp.base.errors import UserError


@contextmanager
def within(part: str) -> Iterator[None]:
    """Name the part in what is refused inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{part}: {error}") from error


def fields_of(value: Any, names: tuple[str, ...]) -> Mapping[str, Any]:
    """Return a dict of exactly these names."""
    if not isinstance(value, dict):
        raise UserError(f"must be a dict of {', '.join(names)}, got {type(value).__name__}")
    for name in names:
        if name not in value:
            raise UserError(f"lacks the field {name!r}")
    for name in value:
        if name not in names:
            shown = repr(name[:40]) if isinstance(name, str) else f"a {type(name).__name__}"
            raise UserError(f"has the field {shown}, which the format does not know")
    return value


def typed(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return a field of exactly this type."""
    value = fields[name]
    # bool is an int to isinstance.
    if type(value) is not kind:
        raise UserError(f"{name} must be {kind.__name__}, got {type(value).__name__}")
    return value


def absent(fields: Mapping[str, Any], name: str) -> None:
    """Refuse a field that is not None."""
    if fields[name] is not None:
        raise UserError(f"{name} must be None: it is not supported")


def array(fields: Mapping[str, Any], name: str) -> np.ndarray:
    """Return a field that is an array, row by row."""
    value = fields[name]
    if not hasattr(value, "__array__"):
        raise UserError(f"{name} must be an array, got {type(value).__name__}")
    return np.ascontiguousarray(value)


def pair(fields: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Return a field that is a pair of ints, or one for both."""
    value = fields[name]
    if type(value) is int:
        return value, value
    if isinstance(value, tuple | list) and len(value) == 2 and all(type(k) is int for k in value):
        return value[0], value[1]
    raise UserError(f"{name} must be an int or a pair of ints")


def quantization(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return x_scale, y_scale, x_zero and y_zero."""
    scales = {name: typed(params, name, float) for name in ("x_scale", "y_scale")}
    return scales | {name: typed(params, name, int) for name in ("x_zero", "y_zero")}
