"""Makes what a node of the config names; what its constructor refuses becomes one line that names the key."""

import difflib
import inspect
import logging
import re
from collections.abc import Callable, Collection
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from octo_exp.base.errors import ConfigError
from octo_exp.base.failures import message_of, user_error

log = logging.getLogger(__name__)

Make = Callable[[DictConfig], Any]
# What other nodes are interpolated from, whether their own class takes it or not.
_READ_BY_OTHERS = ("model", "data", "source")


def plain(node: DictConfig) -> Any:
    """Return what a node makes, its arguments as plain values."""
    return instantiate(node, _convert_="all")


def construct(key: str, node: DictConfig, make: Make = plain) -> Any:
    """Return what `make` makes of a node.

    Args:
        key: where the node stands.
        node: names a class or function by `_target_`.
        make: calls it; more than once where it refuses, to find out for which argument.

    Raises:
        ConfigError: no class is named; an argument that it does not take; whatever it raises, told in one line.

    """
    check_names(key, node)
    try:
        return make(node)
    except Exception as error:
        mistake = user_error(error)
        if mistake is not None:
            raise mistake from error
        # Hydra wraps what a constructor raises.
        reason = message_of(error.__cause__ or error)
        name = _blamed(node, make, reason)
        where = key if name is None else f"{key}.{name}={node[name]}"
        raise ConfigError(f"{where}: {reason}; correct the setting") from error


def check_names(key: str, node: Any) -> None:
    """Raise ConfigError for a node without a class, and for an argument that its class does not take."""
    if not isinstance(node, DictConfig) or not node.get("_target_"):
        raise ConfigError(f"{key}: nothing says of which class it is; write {key}._target_=<class>")
    known = arguments_of(node)
    for name in _given(node):
        if known is not None and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{key}.{near[0]}'? " if near else ""
            takes = f"{node._target_} takes {', '.join(known)}"
            raise ConfigError(f"unknown key '{key}.{name}': {hint}{takes}; ~{key}.{name} leaves it out")


def arguments_of(node: DictConfig) -> list[str] | None:
    """Return the names of the arguments of a node's class; None where it takes any, or does not tell."""
    try:
        parameters = inspect.signature(get_object(str(node._target_))).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind != parameter.POSITIONAL_ONLY]


def fitted(cfg: DictConfig, given: Collection[str]) -> DictConfig:
    """Return the config without arguments of a yaml's class where the command line has named another one.

    Kept is what the new class takes as well, and what the command line gives.

    Args:
        cfg: its names are trusted.
        given: dotted keys of the command line.

    """
    copy = cfg.copy()
    for key in given:
        place = key.removesuffix("._target_")
        node = None if place in (key, *_READ_BY_OTHERS) else OmegaConf.select(copy, place)
        known = arguments_of(node) if isinstance(node, DictConfig) else None
        if node is None or known is None:
            continue
        for name in _given(node):
            if name not in known and f"{place}.{name}" not in given:
                log.info("%s.%s is left out: %s does not take it", place, name, node._target_)
                with open_dict(node):
                    node.pop(name)
    return copy


def _given(node: DictConfig) -> list[str]:
    return [str(name) for name in node if not str(name).startswith("_")]


def _blamed(node: DictConfig, make: Make, reason: str) -> str | None:
    """Return the argument without which the constructor is content, else the only one that its words name."""
    for name in _given(node):
        less = node.copy()
        with open_dict(less):
            less.pop(name)
        try:
            make(less)
        except Exception:
            continue
        return name
    named = [name for name in _given(node) if re.search(rf"\b{re.escape(name)}\b", reason)]
    return named[0] if len(named) == 1 else None
