"""One axis of a space of machines: the values that a field of a profile takes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import check_number
from octo_exp.hw.cycles import choice_codes
from octo_exp.hw.machines import field_names
from octo_exp.hw.profile import check_field, number_rule

# Axes whose values have no order.
CATEGORICAL = ("dataflow",)
_MOST_VALUES = 2**16
# No field of a machine goes further.
_SMALLEST, _LARGEST = 1e-12, 2**40
_FORMS = "a list of values, {from, to[, step]} or {powers_of_two: [low, high]}"


def axis_values(name: str, given: Any) -> NDArray[Any]:
    """Values of an axis, distinct and rising: int64 or float64, or for a dataflow its index in CHOICES as given.

    Args:
        name: a field of `Machines`.
        given: a list, {from, to[, step]} with both ends, or {powers_of_two: [low, high]} with both ends.

    Raises:
        UserError: an unknown field, another form, no value, one twice, or one that a machine cannot have.

    """
    if name not in field_names():
        raise UserError(f"space: a machine cannot vary in {name!r}: choose among {', '.join(field_names())}")
    values = _listed(f"space.{name}", given)
    if not values:
        raise UserError(f"space.{name} has no value: {given!r}")
    if name in CATEGORICAL:
        codes: NDArray[Any] = choice_codes([str(value) for value in values])
    else:
        codes = np.array(sorted(_checked(name, value) for value in values))
    if len(np.unique(codes)) < len(codes):
        raise UserError(f"space.{name} names a value twice: {given!r}")
    return codes


def _checked(name: str, value: Any) -> int | float:
    """Return the value as the profile would take it."""
    check_field("space", name, value)
    return int(value) if number_rule(name)["whole"] else float(value)


def _listed(title: str, given: Any) -> list[Any]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        return list(given)
    if isinstance(given, Mapping) and set(given) == {"powers_of_two"}:
        return _powers_of_two(title, given["powers_of_two"])
    if isinstance(given, Mapping) and {"from", "to"} <= set(given) <= {"from", "to", "step"}:
        return _stepped(title, given["from"], given["to"], given.get("step", 1))
    raise UserError(f"{title} must be {_FORMS}, got {given!r}")


def _powers_of_two(title: str, ends: Any) -> list[int]:
    if not isinstance(ends, Sequence) or len(ends) != 2:
        raise UserError(f"{title}: powers_of_two must be [low, high], got {ends!r}")
    for end in ends:
        check_number(title, "powers_of_two", end, whole=True, high=_LARGEST)
    return [2**power for power in range(math.ceil(math.log2(ends[1])) + 1) if ends[0] <= 2**power <= ends[1]]


def _stepped(title: str, first: Any, last: Any, step: Any) -> list[Any]:
    for name, value in (("from", first), ("to", last), ("step", step)):
        check_number(title, name, value, whole=False, low=_SMALLEST, high=_LARGEST)
    # A last step that rounding puts a hair beyond the end still counts.
    count = max(0, math.floor((last - first) / step + 1e-9) + 1)
    if count > _MOST_VALUES:
        raise UserError(f"{title} has {count:,} values, more than {_MOST_VALUES:,}: give a larger step")
    return [first + index * step for index in range(count)]
