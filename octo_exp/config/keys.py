"""Checks `key=value` against a composed config: is the key known, is the value of the yaml's type."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octo_exp.base.errors import ConfigError
from octo_exp.config.allowed import rule_of
from octo_exp.config.options import dotted, job_part, plain
from octo_exp.config.wording import check_value, listed, near_miss, unknown_place

# Mappings whose keys are names that the yaml cannot know, such as a network's layers; so is every empty mapping.
OPEN_MAPPINGS = ("quant.overrides",)
# The same below hydra, where a new name needs its '+'.
_HYDRA_MAPPINGS = ("hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging", "hydra.sweeper", "hydra.launcher")
_OPEN = {*OPEN_MAPPINGS, *_HYDRA_MAPPINGS}
# Mappings of names to objects, to which '+' adds others, and what it may add beside the optimizer: how Lightning steps
# the scheduler.
_LISTS = ("callbacks", "logger")
_OF_OPTIM = ("scheduler", "interval", "frequency", "monitor")
# Its own arguments are named by the yaml, but for a flag.
_OURS = ("octo_exp.",)
_OUR_SCHEDULE = "octo_exp.runs.lit.warmup_cosine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a dotted key leads: a known node, a new name in an open mapping, or nowhere.

    adds: whether '+' may add the new name: an argument of a constructor that is not ours, or a callback, say.
    foreign: whether the known node is such an argument, whose values its constructor knows.
    """

    known: bool
    open: bool
    adds: bool = False
    foreign: bool = False
    node: Any = None
    siblings: tuple[str, ...] = ()
    # The part of the key that is null here, where that is why it leads nowhere.
    null: str | None = None


class KeyTree:
    """The keys of one composed config, interpolations kept as text.

    Args:
        cfg: composed.
        made: dotted names of nodes that the command line gives a class of their own: their arguments are not the
            yaml's.

    """

    def __init__(self, cfg: DictConfig, made: Collection[str] = ()) -> None:
        self._cfg, self._made = cfg, made
        self._job = plain(job_part(cfg), resolve=False)

    @cached_property
    def _open(self) -> set[str]:
        """Open mappings; a network that the command itself names takes arguments that no yaml knows."""
        model = self._job.get("model")
        unnamed = isinstance(model, dict) and model.get("_target_") == "???"
        return {*_OPEN, "model"} if unnamed else _OPEN

    @cached_property
    def _hydra(self) -> dict[str, Any]:
        return {"hydra": plain(self._cfg.hydra, resolve=False)}

    def names(self, *, hydra: bool) -> list[str]:
        """Returns every dotted key, of the job or of hydra's node."""
        return dotted(self._hydra if hydra else self._job)

    def place(self, key: str) -> Place:
        """Follows a dotted key."""
        node: Any = self._hydra if key.startswith("hydra.") else self._job
        path = key.replace("[", ".").replace("]", "").split(".")
        made = any(".".join(path[:length]) in self._made for length in range(len(path)))
        foreign = False
        for depth, part in enumerate(path):
            if isinstance(node, str) and "${" in node:
                # What an interpolation points at is not followed.
                return Place(known=True, open=True)
            child = _child(node, part)
            if child is None:
                opened = node == {} or any(".".join(path[:length]) in self._open for length in range(depth + 1))
                opened = opened or made
                siblings = tuple(map(str, node)) if isinstance(node, dict) else ()
                null = ".".join(path[:depth]) if node is None else None
                adds = _adds(node, ".".join(path[:depth]), part)
                return Place(known=False, open=opened, adds=adds, siblings=siblings, null=null)
            foreign = _is_foreign(node)
            node = child[0]
        return Place(known=True, open=made or node == {} or key in OPEN_MAPPINGS, foreign=foreign, node=node)

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
    rule = rule_of(key)
    if not place.known:
        added = place.adds and (override.is_add() or override.is_force_add())
        if not place.open and not (added and (_names_class(value) or near_miss(key, place.siblings) is None)):
            raise _unknown_key(key, place, tree, groups)
        if rule is not None:
            rule.check(key, value)
        return
    if override.is_add() and place.node is not None and not place.open and not isinstance(value, dict | list):
        raise ConfigError(f"'{override.input_line}': {key} is there already, leave out the '+'")
    if override.is_force_add() or place.open:
        return
    if rule is not None:
        rule.check(key, value)
    # null is for the constructor to judge that takes it.
    elif not (value is None and place.foreign):
        check_value(key, value, tree.default(key))


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
    # A part that is one of several forms has the keys of the one that is chosen.
    group = key.rpartition(".")[0].replace(".", "/")
    if "/" in group and group in groups:
        return ConfigError(
            f"unknown key '{key}': {listed(sorted(beside))} is what this option has; {group}= chooses another"
        )
    if "." in key:
        error = unknown_place("key", key, [*groups, *names], beside)
        adds = place.adds and near_miss(key, place.siblings) is None
        return ConfigError(f"{error}; what else it takes is added as +{key}=<value>") if adds else error
    return unknown_place("group or key", key, [*groups, *names], beside.union(groups))


def _adds(node: Any, key: str, part: str) -> bool:
    """Whether '+' may add a name to the node at `key`."""
    return _is_foreign(node) or key in _LISTS or (key == "optim" and part in _OF_OPTIM)


def _is_foreign(node: Any) -> bool:
    """Whether a node is made by a constructor that is not ours, or by the schedule of ours that has a default."""
    target = str(node.get("_target_", "")) if isinstance(node, dict) else ""
    return bool(target) and (not target.startswith(_OURS) or target == _OUR_SCHEDULE)


def _names_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def made_nodes(settings: Collection[tuple[str, Any]]) -> set[str]:
    """Pairs of key and value -> the nodes to which they give a class."""
    found = {key.removesuffix("._target_") for key, _ in settings if key.endswith("._target_")}
    return found | {key for key, value in settings if _names_class(value)}


def _child(node: Any, part: str) -> tuple[Any] | None:
    """Returns the child in a 1-tuple, since null is a value too; None where there is none."""
    if isinstance(node, list):
        return (node[int(part)],) if part.lstrip("-").isdigit() and -len(node) <= int(part) < len(node) else None
    if isinstance(node, dict):
        name = next((name for name in node if str(name) == part), None)
        return None if name is None else (node[name],)
    return None
