"""Looks at every object that a config names, before any of them is called."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from octo_exp.base.errors import ConfigError
from octo_exp.config.trust.command_line import packages_of, trusted_by
from octo_exp.config.trust.objects import find, home, is_python_own, look_here, title, within
from octo_exp.config.trust.places import PLAIN, Place, is_argument, place_of
from octo_exp.config.trust.walk import Named, named


def check_targets(cfg: Mapping[str, Any], *, trust: Sequence[str] | str | None = None) -> None:
    """Raise ConfigError, in one line, for the first name in a config that may not stand where it stands.

    Looked at is the object found, not how it is spelled: it must be of the kind that its key takes, and come from
    octo_exp, torch, lightning, torchmetrics or a trusted package, which may lie where the command was typed. No
    module of any other is imported. Nothing is called.

    Args:
        cfg: a config, resolvable or not, or a part of it below its own key, as {"hydra": node}.
        trust: further packages; None for those that `cfg` itself names, which a config of others must not.

    """
    extra = trusted_by(cfg) if trust is None else packages_of(trust)
    if extra:
        look_here()
    for name in named(cfg):
        _check(name, place_of(name.place), extra)


def _check(name: Named, place: Place, extra: tuple[str, ...]) -> None:
    known = (*place.packages, *extra)
    if isinstance(name.target, str):
        if name.target in PLAIN and is_argument(name.place):
            return
        if not within(name.target, known):
            raise _foreign(name, place, name.target, extra)
        try:
            found = find(name.target)
        except ImportError as error:
            raise ConfigError(f"{_shown(name)} cannot be found ({_first_line(error)}); correct the name") from error
    else:
        found = name.target
    origin = home(found)
    if origin is None or not within(origin, known):
        raise _foreign(name, place, title(found), extra)
    if any(_is_a(found, kind, origin) for kind in place.takes):
        return
    # What a function makes shows only once it ran: that of a package which the user trusts may.
    if within(origin, extra) and (is_argument(name.place) or not inspect.isclass(found)):
        return
    raise ConfigError(f"{_shown(name)} was not run: it is {title(found)}, and {_takes(place)}")


def _is_a(found: Any, kind: str, origin: str) -> bool:
    """Whether an object of a module is of a kind, as `Place` words it."""
    room = kind.removesuffix(".*")
    if room != kind:
        return inspect.isclass(found) and within(origin, (room,)) and _is_value(found)
    known = find(kind)
    return known in found.__mro__ if inspect.isclass(found) and inspect.isclass(known) else found is known


def _is_value(found: type) -> bool:
    """Whether a class is a frozen dataclass: all that making one does is to check its fields."""
    parameters = getattr(found, "__dataclass_params__", None)
    return dataclasses.is_dataclass(found) and bool(getattr(parameters, "frozen", False))


def _foreign(name: Named, place: Place, path: str, extra: Sequence[str]) -> ConfigError:
    package = path.partition(".")[0]
    if is_python_own(path):
        return ConfigError(f"{_shown(name)} was not run: {path} is of Python's own library, and {_takes(place)}")
    if not package.isidentifier() or within(package, (*place.packages, *extra)):
        return ConfigError(f"{_shown(name)} was not run: where it comes from cannot be told, and {_takes(place)}")
    trust = ",".join([*extra, package])
    return ConfigError(f"{_shown(name)} was not run: {package} is not trusted; if you trust it, add trust=[{trust}]")


def _takes(place: Place) -> str:
    key = ".".join(place.key) or "the config's root"
    kinds = [f"a value of {kind[:-2]}" if kind.endswith(".*") else kind for kind in place.takes]
    return f"{key} takes {' or '.join(kinds)}; name one" if kinds else f"{key} takes none; leave it out"


def _shown(name: Named) -> str:
    target = name.target if isinstance(name.target, str) else title(name.target)
    return f"{name.written}={target}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
