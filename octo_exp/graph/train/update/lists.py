"""Reads the two lists of a sparse update, each written as a yaml list or as numbers joined by '-'."""

from collections.abc import Sequence

from octo_exp.base.errors import UserError


def layer_indices(value: object) -> tuple[int, ...] | None:
    """Return the indices of '21-24-27', [21, 24, 27] or 21; None for None.

    Raises:
        UserError: an entry that is no index, or indices that do not ascend.

    """
    if value is None:
        return None
    title = f"update.sparse.weight_idx={_shown(value)}"
    remedy = "write indices of convolutions as [21, 24, 27] or '21-24-27'"
    entries = _entries(value)
    try:
        indices = tuple(int(entry) for entry in entries if isinstance(entry, int | str) and not isinstance(entry, bool))
    except (TypeError, ValueError):
        raise UserError(f"{title}: {remedy}") from None
    if len(indices) < len(entries) or not indices or min(indices) < 0:
        raise UserError(f"{title}: {remedy}")
    if list(indices) != sorted(set(indices)):
        raise UserError(f"{title} must ascend without repeats: {'-'.join(map(str, sorted(set(indices))))}")
    return indices


def ratios(value: object) -> float | tuple[float, ...] | None:
    """Return 0.5 for 0.5 (every layer alike), (1.0, 0.5) for '1-0.5' and [1, 0.5]; None (all channels) for None.

    Raises:
        UserError: an entry that is no number in [0, 1].

    """
    if value is None:
        return None
    title = f"update.sparse.ratio={_shown(value)}"
    alike = isinstance(value, int | float)
    try:
        numbers = tuple(_number(entry) for entry in ([value] if alike else _entries(value)))
    except (TypeError, ValueError):
        raise UserError(
            f"{title}: write null, one number, or one number a weight layer as [1, 0.5] or '1-0.5'"
        ) from None
    for number in numbers:
        # Written so that nan is refused too.
        if not 0 <= number <= 1:
            raise UserError(
                f"{title}: {number:g} is outside 0 .. 1, the fraction of input channels whose weights train"
            )
    return numbers[0] if alike else numbers


def count(name: str, value: object) -> int | str:
    """Return a whole number >= 0 or 'all'; `name` is the key that the error names."""
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise UserError(
        f"update.sparse.{name}={_shown(value)}: write how many of the last convolutions, 0 or more, or 'all'"
    )


def _entries(value: object) -> Sequence[object]:
    if isinstance(value, str):
        return value.split("-")
    return value if isinstance(value, Sequence) else [value]


def _number(entry: object) -> float:
    if isinstance(entry, bool) or not isinstance(entry, int | float | str):
        raise TypeError
    return float(entry)


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
