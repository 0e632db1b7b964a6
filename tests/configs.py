"""Compose the shipped configs in tests, and pick combinations from the config groups."""

import copy
import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

CONF = Path(__file__).resolve().parents[1] / "conf"


def options(group: str) -> list[str]:
    """The names in a config group, from its folder."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def node_of(group: str, option: str) -> DictConfig:
    """The yaml of an option over those of its own group that its `defaults` name; a `_target_` may be missing."""
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    assert isinstance(node, DictConfig)
    for base in node.pop("defaults", []):
        if isinstance(base, str) and base != "_self_" and "@" not in base:
            node = OmegaConf.merge(node_of(group, base), node)
    return node


def target_of(group: str, option: str) -> str:
    """What an option makes, as its yaml or the one below it says; None and ??? as words."""
    return str(OmegaConf.to_container(node_of(group, option)).get("_target_"))


def compose_copy(root: str | None, *overrides: str) -> DictConfig:
    """What Hydra composes of `conf/`, a root config or none: its groups once a process, values laid over a copy.

    A fifth of the suite's time would be compositions of the same groups; values are laid over as Hydra does it.
    """
    values = [override for override in overrides if _is_value(override)]
    if any(override.startswith(("+", "~")) for override in overrides):
        # They may be about the same keys: in their order.
        values = []
    groups = tuple(override for override in overrides if override not in values)
    cfg = copy.deepcopy(_composed_once(root, groups))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), cfg)
    return cfg


def _is_value(override: str) -> bool:
    key = override.partition("=")[0]
    return re.fullmatch(r"(?!hydra\b)\w+(\.\w+)*", key) is not None and not (CONF / key).is_dir()


@functools.cache
def _composed_once(root: str | None, overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, overrides=list(overrides))


def composed(*overrides: str, save_dir: Path | None = None) -> DictConfig:
    """The root config with overrides, without Hydra's own node."""
    cfg = compose_copy("train", *overrides, "save_dir=null")
    with open_dict(cfg):
        cfg.save_dir = str(save_dir) if save_dir else None
        cfg.trainer.enable_progress_bar = False
    return cfg


def pairwise(**groups: Sequence[str]) -> list[dict[str, str]]:
    """A small set of combinations in which every pair of options of two groups occurs (greedy)."""
    names = list(groups)
    missing = {(a, x, b, y) for a, b in itertools.combinations(names, 2) for x in groups[a] for y in groups[b]}
    everything = [dict(zip(names, values, strict=True)) for values in itertools.product(*groups.values())]

    def pairs(combination: dict[str, str]) -> set[tuple[str, str, str, str]]:
        return {(a, combination[a], b, combination[b]) for a, b in itertools.combinations(names, 2)}

    chosen = []
    while missing:
        best = max(everything, key=lambda c: len(pairs(c) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen
