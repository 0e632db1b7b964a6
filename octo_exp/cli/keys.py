"""Checks `key=value` against a composed config: is the key known, is the value of the yaml's type."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octo_exp.cli.space import dotted, job_part
from octo_exp.cli.wording import check_value, unknown_place
from octo_exp.errors import ConfigError

# Mappings whose keys are names that the yaml cannot know, such as a network's layers; so is every empty mapping.
OPEN_MAPPINGS = ("quant.overrides",)
# The same below hydra, where a new name needs its '+'.
_HYDRA_MAPPINGS = ("hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging", "hydra.sweeper", "hydra.launcher")
_OPEN = {*OPEN_MAPPINGS, *_HYDRA_MAPPINGS}
# Keys of several types, with a default whose type says what may stand there; None for anything.
_EXAMPLES: dict[str, object] = {
    "trainer.devices": None,
    "trainer.limit_train_batches": 1.0,
    "trainer.limit_val_batches": 1.0,
    "trainer.limit_test_batches": 1.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a dotted key leads: a known node, a new name in an open mapping, or nowhere."""

    known: bool
    open: bool
    node: Any = None
    siblings: tuple[str, ...] = ()
    # The part of the key that is null here, where that is why it leads nowhere.
    null: str | None = None


class KeyTree:
    """The keys of one composed config, interpolations kept as text."""

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        self._job = OmegaConf.to_container(job_part(cfg), resolve=False)

    @cached_property
    def _open(self) -> set[str]:
        """Open mappings; a network that the command itself names takes arguments that no yaml knows."""
        model = self._job.get("model")
        unnamed = isinstance(model, dict) and model.get("_target_") == "???"
        return {*_OPEN, "model"} if unnamed else _OPEN

    @cached_property
    def _hydra(self) -> dict[str, Any]:
        return {"hydra": OmegaConf.to_container(self._cfg.hydra, resolve=False)}

    def names(self, *, hydra: bool) -> list[str]:
        """Returns every dotted key, of the job or of hydra's node."""
        return dotted(self._hydra if hydra else self._job)

    def place(self, key: str) -> Place:
        """Follows a dotted key."""
        node: Any = self._hydra if key.startswith("hydra.") else self._job
        path = key.replace("[", ".").replace("]", "").split(".")
        for depth, part in enumerate(path):
            if isinstance(node, str) and "${" in node:
                # What an interpolation points at is not followed.
                return Place(known=True, open=True)
            child = _child(node, part)
            if child is None:
                opened = node == {} or any(".".join(path[:length]) in self._open for length in range(depth + 1))
                siblings = tuple(map(str, node)) if isinstance(node, dict) else ()
                null = ".".join(path[:depth]) if node is None else None
                return Place(known=False, open=opened, siblings=siblings, null=null)
            node = child[0]
        return Place(known=True, open=node == {} or key in OPEN_MAPPINGS, node=node)

    def default(self, key: str) -> object:
        """Returns the value of a known key with interpolations resolved; None where they cannot be."""
        try:
            value = OmegaConf.select(self._cfg, key)
        except OmegaConfBaseException:
            return None
        return OmegaConf.to_container(value, resolve=False) if isinstance(value, DictConfig | ListConfig) else value


def check_key(override: Override, tree: KeyTree, groups: list[str]) -> None:
    """Raises ConfigError for an unknown key, an unwanted '+', or a value of another type than the yaml's.

    `++key=value` forces the value, not the key. Below hydra the types are Hydra's to check.
    """
    key = override.key_or_group
    if override.package is not None or "/" in key:
        raise unknown_place("group", override.get_key_element().lstrip("~+"), groups, beside=groups)
    place = tree.place(key)
    added = override.is_add() or override.is_force_add()
    if override.is_delete() or key.startswith("hydra."):
        if not place.known and not (added and place.open):
            raise _unknown_key(key, place, tree, groups)
        if override.is_delete() and "." not in key:
            raise ConfigError(f"'{override.input_line}': a run needs {key}, write {key}=<value>")
        return
    for leaf, value in _leaves(key, override.value(), tree):
        _check_leaf(leaf, value, override, tree, groups)


def missing_plus(override: Override, tree: KeyTree) -> str:
    """Returns the '+' or '++' that Hydra asks for where a name is new in an open mapping; else nothing."""
    if override.is_add() or override.is_force_add() or override.is_delete():
        return ""
    place = tree.place(override.key_or_group)
    if not place.open:
        return ""
    if not place.known:
        return "+"
    return "++" if isinstance(override.value(), dict) else ""


def _check_leaf(key: str, value: object, override: Override, tree: KeyTree, groups: list[str]) -> None:
    place = tree.place(key)
    if not place.known:
        if not place.open:
            raise _unknown_key(key, place, tree, groups)
        return
    if override.is_add() and place.node is not None and not place.open and not isinstance(value, dict | list):
        raise ConfigError(f"'{override.input_line}': {key} is there already, leave out the '+'")
    if not override.is_force_add() and not place.open:
        check_value(key, value, _EXAMPLES[key] if key in _EXAMPLES else tree.default(key))


def _leaves(key: str, value: Any, tree: KeyTree) -> Iterator[tuple[str, Any]]:
    """Splits a mapping given for a mapping, as Hydra merges it, into its keys."""
    place = tree.place(key)
    if isinstance(value, Mapping) and isinstance(place.node, Mapping) and not place.open:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner, tree)
    else:
        yield key, value


def _unknown_key(key: str, place: Place, tree: KeyTree, groups: list[str]) -> ConfigError:
    """Names the nearest key or group, else the keys beside it."""
    if place.null is not None:
        group = place.null.split(".")[0]
        remedy = f"choose an option of {group} that sets it" if group in groups else f"write {place.null}=<value>"
        return ConfigError(f"{key}: {place.null} is null here; {remedy}")
    names = [name for name in tree.names(hydra=key.startswith("hydra.")) if "._" not in name]
    beside = {name for name in place.siblings if not name.startswith("_")}
    if "." in key:
        return unknown_place("key", key, [*groups, *names], beside)
    return unknown_place("group or key", key, [*groups, *names], beside.union(groups))


def _child(node: Any, part: str) -> tuple[Any] | None:
    """Returns the child in a 1-tuple, since null is a value too; None where there is none."""
    if isinstance(node, list):
        return (node[int(part)],) if part.lstrip("-").isdigit() and -len(node) <= int(part) < len(node) else None
    if isinstance(node, dict):
        name = next((name for name in node if str(name) == part), None)
        return None if name is None else (node[name],)
    return None
