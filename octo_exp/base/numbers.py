"""Checks of numbers that rooms share: finite, positive, whole, one line per mistake."""

import math

from octo_exp.base.errors import UserError

# Whole numbers from here on are shown rounded.
_LONG = 10**16


def check_number(
    title: str, name: str, value: object, *, whole: bool, low: float | None = None, high: float | None = None
) -> None:
    """Raise `UserError` unless `value` is a finite number > 0, a whole one where asked, and in low..high."""
    kind = "a whole number" if whole else "a number"
    accepted = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise UserError(f"{title}: {name} must be {kind}, got {value!r}")
    # Compared and not converted: an integer may be larger than any float.
    if not 0 < value < math.inf:
        raise UserError(f"{title}: {name} must be {kind} greater than zero, got {shown(value)}")
    if low is not None and value < low:
        raise UserError(f"{title}: {name} must be at least {low:g}, got {shown(value)}")
    if high is not None and value > high:
        raise UserError(f"{title}: {name} must be at most {high:.16g}, got {shown(value)}")


def shown(value: object) -> str:
    """A value as Python writes it, but for whole numbers of so many digits that nobody reads them."""
    return rough(value) if isinstance(value, int) and abs(value) >= _LONG else repr(value)


def rough(count: float) -> str:
    """Two digits of a count of any size."""
    if isinstance(count, float) or abs(count) < 10**300:
        return f"{count:.1e}".replace("e+", "e")
    return f"{'-' if count < 0 else ''}1e{int(math.log10(abs(count)))}"
