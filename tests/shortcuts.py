"""What tests spare themselves: to read the same yaml files and to look through the same living objects each time."""

import copy
import functools
import gc
import os
from types import SimpleNamespace
from typing import Any

import omegaconf
from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import grammar_parser

# Collections after which one looks through everything again.
THOROUGH = 10

_load = ConfigRepository.load_config
_loaded: dict[tuple[Any, ...], ConfigResult] = {}
_collected = 0


def install() -> None:
    """Let this process take them."""
    # Not before the Triton interpreter is chosen.
    from octo_exp.runs import run

    # OmegaConf parses the same few hundred interpolations thousands of times. Nobody changes a tree that it returns.
    parse = functools.cache(grammar_parser.parse)
    for module in (omegaconf.base, omegaconf._utils):
        module.parse = parse
    ConfigRepository.load_config = _load_once
    run.gc = SimpleNamespace(collect=_collect_what_is_new)


def _load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Read a yaml file once, until it is another: Hydra does so within one composition, and changes no option's node.

    What is laid into the root itself, a root config or an experiment, becomes part of the composed config: a copy.
    """
    source = self._find_object_source(config_path=config_path, object_type=ObjectType.CONFIG)
    # By their schemes: Hydra imports the classes of its sources a second time.
    if source is None or source.scheme() not in ("file", "pkg"):
        return _load(self, config_path)
    key: tuple[Any, ...] = (source.path, source.provider, config_path)
    if source.scheme() == "file":
        stat = os.stat(os.path.join(source.path, source._normalize_file_name(config_path)))
        key += (stat.st_ino, stat.st_mtime_ns, stat.st_size)
    if key not in _loaded:
        _loaded[key] = _load(self, config_path)
    found = copy.copy(_loaded[key])
    if "/" not in config_path or "_global_" in (found.header["package"] or ""):
        found.config = copy.deepcopy(found.config)
    return found


def _collect_what_is_new() -> int:
    """Collect, and look at what stays no more: each run ends in a collection, which modules and fixtures make slow.

    What stays and is let go later is found by one collection of ten.
    """
    global _collected
    _collected += 1
    if _collected % THOROUGH == 0:
        gc.unfreeze()
    count = gc.collect()
    gc.freeze()
    return count
