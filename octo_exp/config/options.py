"""The space of configs that the yaml files span: groups, options, and composition with one-line errors."""

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from octo_exp.base.errors import ConfigError
from octo_exp.config.allowed import check_values
from octo_exp.config.trust import check_targets
from octo_exp.config.wording import listed, one_line, unknown

VERSION_BASE = "1.3"
# What a broken yaml or an impossible composition raises.
_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)
_OPTION = re.compile(r"\w+=\w+")


class ConfigSpace:
    """The configs reachable from one root config; read with Hydra's own loader, so both see the same files.

    `lines` are the settings of the command: of hydra.searchpath, which decide what there is to find, and the options
    that the root config is composed with at once, where nothing but `group=option` is said.
    """

    def __init__(self, *, config_dir: str, extra_dir: str | None, config_name: str, lines: Sequence[str] = ()) -> None:
        version.setbase(VERSION_BASE)
        setup_globals()
        search_path = self._search_path = create_config_search_path(config_dir)
        if extra_dir is not None:
            folder = Path(extra_dir).absolute()
            if not folder.is_dir():
                raise ConfigError(f"--config-dir: there is no folder {folder}")
            search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        self.loader = ConfigLoaderImpl(search_path)
        self.config_name = config_name.removesuffix(".yaml")
        self._search_lines = [line for line in lines if line.lstrip("+").startswith("hydra.searchpath=")]
        self._chosen = [line for line in lines if self._is_option(line)]
        self._options: dict[str, list[str]] = {}
        roots = [name for name in self.loader.repository.get_group_options("") if not name.startswith("_")]
        # A root config in a subfolder is not in that listing.
        if "/" not in self.config_name and self.config_name not in roots:
            raise unknown("config", self.config_name, roots)

    def _is_option(self, line: str) -> bool:
        return bool(_OPTION.fullmatch(line)) and line.partition("=")[2] in self.loader.repository.get_group_options(
            line.partition("=")[0]
        )

    @cached_property
    def root(self) -> DictConfig:
        """The config of the options that the command says; groups that must be chosen are left out."""
        return self.compose(self._chosen, RunMode.MULTIRUN)

    @cached_property
    def choices(self) -> dict[str, str | None]:
        """The option of each group of the defaults list, hydra's included, ??? where one must be chosen.

        List-valued groups are not among them.
        """
        return plain(self.root.hydra.runtime.choices, resolve=False)

    @cached_property
    def groups(self) -> list[str]:
        """What may stand left of '=' to choose an option, hydra's own groups left out."""
        folders = [name for name in self.folders("") if name != "hydra" and self.options(name)]
        return sorted({*folders, *(name for name in self.choices if not name.startswith("hydra/"))})

    def options(self, group: str) -> list[str]:
        """Returns the options of a group; empty where there is no such group."""
        if group not in self._options:
            self._options[group] = self._repository.get_group_options(group)
        return self._options[group]

    def folders(self, group: str) -> list[str]:
        """Returns the groups inside a group, of which "" is the outermost."""
        return list(self._repository.get_group_options(group, ObjectType.GROUP))

    @cached_property
    def _repository(self) -> ConfigRepository:
        """Where the files lie, hydra.searchpath included; the loader would copy its own for every question."""
        paths = list(self.root.hydra.searchpath)
        if not paths:
            return self.loader.repository
        search_path = copy.deepcopy(self._search_path)
        for path in paths:
            search_path.append("hydra.searchpath", path)
        return ConfigRepository(search_path)

    def compose(self, lines: Sequence[str], mode: RunMode) -> DictConfig:
        """Composes as Hydra would; ConfigError where that is impossible."""
        with _one_line_errors():
            return self.loader.load_configuration(self.config_name, [*self._search_lines, *lines], mode)

    def choose(self, lines: Sequence[str]) -> DictConfig:
        """Composes the config of these options; it is the root where they are its own and nothing must be chosen."""
        if sorted(lines) != sorted(self._chosen) or "???" in self.choices.values():
            return self.compose(lines, RunMode.RUN)
        return self.root.copy()


def apply(overrides: Sequence[Override], cfg: DictConfig) -> None:
    """Sets keys in a composed config as Hydra would; ConfigError where that is impossible."""
    with _one_line_errors():
        ConfigLoaderImpl._apply_overrides_to_config(list(overrides), cfg)


def check_hydra(cfg: DictConfig, *, trust: Sequence[str]) -> None:
    """Raises ConfigError for what Hydra's own node names and must not: Hydra calls it before any line of ours."""
    with _hydra_config(cfg):
        check_targets({"hydra": cfg.hydra}, trust=trust)


def job_part(cfg: DictConfig) -> DictConfig:
    """Returns a copy without hydra's node."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def plain(node: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """Returns a mapping of a config as Python's own."""
    container: Any = OmegaConf.to_container(node, resolve=resolve)
    return dict(container)


def check_complete(cfg: DictConfig) -> dict[str, Any]:
    """Returns the job's config resolved.

    ConfigError for what must be given, an interpolation that leads nowhere, a value out of its range.
    """
    missing = [key for key, value in _entries(plain(job_part(cfg), resolve=False)) if value == "???"]
    if missing:
        raise ConfigError(f"{listed(missing)} must be given: write {missing[0]}=<value>")
    values = resolved(cfg)
    check_values(values)
    return values


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Returns the job's config with every interpolation resolved; ConfigError names the one that cannot be."""
    with _hydra_config(cfg):
        try:
            return plain(job_part(cfg), resolve=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{error.full_key}: {one_line(str(error.msg).splitlines()[0])}") from error


def text_at(cfg: DictConfig, key: str) -> str:
    """Returns what Hydra is going to read at a key of its own; ConfigError where that cannot be resolved."""
    with _hydra_config(cfg):
        try:
            return str(OmegaConf.select(cfg, key))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {one_line(str(error.msg).splitlines()[0])}") from error


def dotted(node: object) -> list[str]:
    """Returns the dotted name of every key of a nested mapping."""
    return [key for key, _ in _entries(node)]


def _entries(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield f"{prefix}{key}", value
            yield from _entries(value, f"{prefix}{key}.")


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except _COMPOSITION_ERRORS as error:
        cause = error.__cause__
        reason = one_line(f"{error} {cause}" if isinstance(cause, OmegaConfBaseException) else error)
        # Hydra's advice would name a group that the program does not know, or a key's place in a config.
        for tail in (" full_key:", " To append"):
            reason = reason.partition(tail)[0]
        raise ConfigError(f"cannot compose the config: {reason}") from error


@contextlib.contextmanager
def _hydra_config(cfg: DictConfig) -> Iterator[None]:
    """Lets ${hydra:...} read `cfg`, as it will in the run; leaves no trace."""
    current = HydraConfig.instance()
    saved = current.cfg
    try:
        current.set_config(cfg)
        yield
    finally:
        current.cfg = saved
