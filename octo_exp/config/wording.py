"""What a wrong name or value is answered with: one line, the nearest right name, the options. Standard library only."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher

from octo_exp.base.errors import ConfigError

_MOST_NAMES = 40
_NEAR = 0.6
# Of what is written where a new name may stand too: min_steps is none of max_steps.
_NEARLY_SAME = 0.85
_LEAF_WEIGHT = 0.9
_WHOLE_WEIGHT = 0.75
_PARTS = re.compile(r"[.@/]")

_EXPECTED = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list, written [a,b]",
    dict: "a mapping, written {key: value}",
}


def one_line(text: object) -> str:
    """Folds all white space, so that a library's several lines become one."""
    return " ".join(str(text).split())


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Returns the candidate that `name` most likely stands for; None if none is near."""
    others = [other for other in candidates if not name.startswith(other + ".")]
    best = max(others, key=lambda other: (_likeness(name, other), -len(other)), default=None)
    return best if best is not None and _likeness(name, best) >= _NEAR else None


def near_miss(key: str, siblings: Iterable[str]) -> str | None:
    """Returns the sibling that the last part of a dotted key is meant for beyond doubt; None if there is none."""
    leaf = key.rpartition(".")[2].lower()
    ratios = {name: SequenceMatcher(None, leaf, name.lower()).ratio() for name in siblings}
    best = max(ratios, key=lambda name: ratios[name], default=None)
    return best if best is not None and ratios[best] >= _NEARLY_SAME else None


def _likeness(name: str, other: str) -> float:
    """Scores two dotted names, 0 to 1.

    Names side by side are compared by their last part, any others as a whole, which counts less since a common
    beginning says little. A last part in the wrong place counts too, where the beginning was left out or is of the
    same group: lr or optim.lr for optim.optimizer.lr.
    """
    name, other = name.lower(), other.lower()
    (*parents, leaf), (*other_parents, other_leaf) = _PARTS.split(name), _PARTS.split(other)
    of_leaves = SequenceMatcher(None, leaf, other_leaf).ratio()
    if parents == other_parents:
        return of_leaves
    whole = _WHOLE_WEIGHT * SequenceMatcher(None, name, other).ratio()
    related = not parents or not other_parents or parents[0] == other_parents[0] or other.endswith(f".{name}")
    return max(whole, _LEAF_WEIGHT * of_leaves) if related else whole


def listed(names: Collection[str]) -> str:
    """Joins names by commas; a very long list is cut."""
    shown = sorted(names)[:_MOST_NAMES]
    return ", ".join(shown) + (", ..." if len(names) > _MOST_NAMES else "")


def unknown(what: str, name: str, options: Collection[str]) -> ConfigError:
    """Returns the error for a name that is none of `options`, with the nearest and all of them."""
    near = nearest(name, options)
    hint = f"did you mean '{near}'? " if near else ""
    return ConfigError(f"unknown {what} '{name}': {hint}options: {listed(options)}")


def unknown_place(what: str, name: str, candidates: Collection[str], beside: Collection[str]) -> ConfigError:
    """Returns the error for a name that is none of many: the nearest of them, or what there is beside it."""
    near = nearest(name, candidates)
    hint = f"did you mean '{near}'?" if near else f"known there: {listed(beside)}"
    return ConfigError(f"unknown {what} '{name}': {hint}")


def check_value(key: str, value: object, default: object) -> None:
    """Raises ConfigError unless `value` has the type of the yaml's `default`.

    A default of null or ??? says nothing of its type; an interpolation in `value` is judged when it is resolved.
    A number may be an integer where the default is a float. null may switch off text, a list or a mapping, not a
    number. Lists whose defaults are all of one type are checked element by element.
    """
    if default is None or default == "???" or (isinstance(value, str) and "${" in value):
        return
    expected = next((kind for kind in _EXPECTED if isinstance(default, kind)), None)
    if expected is None:
        return
    if not _fits(value, expected):
        raise ConfigError(f"{key} expects {_EXPECTED[expected]}, got {shown(value)} (the default is {shown(default)})")
    if isinstance(value, list) and isinstance(default, list):
        _check_elements(key, value, default)


def _fits(value: object, expected: type) -> bool:
    if expected is bool:
        return isinstance(value, bool)
    if expected in (int, float):
        number = (int,) if expected is int else (int, float)
        return isinstance(value, number) and not isinstance(value, bool)
    if expected is str:
        return not isinstance(value, list | dict)
    return value is None or isinstance(value, expected)


def _check_elements(key: str, value: Sequence[object], default: Sequence[object]) -> None:
    kinds = {type(element) for element in default}
    if kinds == {int, float}:
        kinds = {float}
    if len(kinds) != 1 or not kinds <= {bool, int, float, list}:
        return
    kind = kinds.pop()
    example = next(element for element in default if type(element) is kind)
    for index, element in enumerate(value):
        check_value(f"{key}[{index}]", element, example)


def shown(value: object) -> str:
    """Returns a value as a message shows it: as yaml writes it, text in quotes, a large mapping by its size."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping) and len(value) > 3:
        return f"a mapping of {len(value)} keys"
    return f"'{value}'" if isinstance(value, str) else str(value)
