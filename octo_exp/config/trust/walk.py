"""Every name in a config that something is going to look up and call, wherever it stands."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from octo_exp.base.errors import ConfigError

_MOST_LEVELS = 40
_LOGGING = (("hydra", "job_logging"), ("hydra", "hydra_logging"))
# What Python's logging.config calls.
_FACTORIES = ("()", "class", "queue", "listener")
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# Hydra's sweeper for Optuna looks it up by its name alone.
_FUNCTIONS = (("hydra", "sweeper", "custom_search_space"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A name found: the place that it fills, where it is written, and the dotted name, or the object itself."""

    place: tuple[str, ...]
    written: str
    target: Any


def named(node: Any, key: tuple[str, ...] = ()) -> Iterator[Named]:
    """Yield the names in a node with interpolations resolved; ConfigError for one that cannot be.

    What else cannot be resolved is passed over: nothing can be made of it either.
    """
    if len(key) > _MOST_LEVELS:
        raise ConfigError(f"{'.'.join(key[:4])}...: more than {_MOST_LEVELS} levels; a config has no such depth")
    for name in _names(node):
        inner = (*key, str(name))
        written = ".".join(inner)
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            if name == "_target_":
                reason = str(error).splitlines()[0]
                raise ConfigError(f"{written} cannot be resolved ({reason}); write the name itself") from error
            continue
        if name == "_target_":
            yield Named(place=key, written=written, target=value)
        elif inner in _FUNCTIONS and value is not None:
            yield Named(place=inner, written=written, target=value)
        elif isinstance(value, str) and key[:2] in _LOGGING:
            yield from _of_logging(value, key, inner)
        else:
            yield from named(value, inner)


def _names(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node)
    return list(range(len(node))) if isinstance(node, Sequence) and not isinstance(node, str | bytes) else []


def _of_logging(value: str, key: tuple[str, ...], inner: tuple[str, ...]) -> Iterator[Named]:
    if inner[-1] in _FACTORIES:
        yield Named(place=key, written=".".join(inner), target=value)
    elif value.startswith("ext://") and value not in _STREAMS:
        yield Named(place=inner, written=".".join(inner), target=value.removeprefix("ext://"))
