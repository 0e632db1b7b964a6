"""Answers --help from hydra.help.template with what Hydra fills in: it would compose everything once more for it."""

import string
from argparse import ArgumentParser
from collections.abc import Callable

from hydra._internal.hydra import Hydra
from omegaconf import DictConfig, OmegaConf

from octo_exp.base.errors import ConfigError
from octo_exp.config.options import ConfigSpace, job_part, resolved, text_at


def help_text(cfg: DictConfig, space: ConfigSpace, parser: ArgumentParser, *, program: str, resolve: bool) -> str:
    """Return what --help prints of a composed config; program: how it is called.

    ConfigError for a template that asks for something else.
    """
    fields = {
        "PROGRAM": lambda: program,
        "FLAGS_HELP": lambda: Hydra.format_args_help(parser),
        "APP_CONFIG_GROUPS": lambda: _groups(space, lambda name: not _is_hydra(name)),
        "HYDRA_CONFIG_GROUPS": lambda: _groups(space, _is_hydra),
        "CONFIG": lambda: OmegaConf.to_yaml(resolved(cfg) if resolve else job_part(cfg)),
    }
    template = string.Template(text_at(cfg, "hydra.help.template"))
    wanted = template.get_identifiers()
    if not template.is_valid() or not fields.keys() >= set(wanted):
        raise ConfigError(f"hydra.help.template: behind a $ stands one of {', '.join(fields)}, or another $")
    return template.substitute({name: fields[name]() for name in wanted})


def _is_hydra(group: str) -> bool:
    return group.partition("/")[0] == "hydra"


def _groups(space: ConfigSpace, wanted: Callable[[str], bool]) -> str:
    """A line for each group that has options."""
    names = sorted(name for name in _below("", space) if wanted(name) and space.options(name))
    return "".join(f"{name}: {', '.join(space.options(name))}\n" for name in names)


def _below(group: str, space: ConfigSpace) -> list[str]:
    inside = [f"{group}/{name}".lstrip("/") for name in space.folders(group)]
    return [*inside, *(name for one in inside for name in _below(one, space))]
