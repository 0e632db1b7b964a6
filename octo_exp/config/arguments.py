"""Checks a command line against the yaml files before anything heavy is imported."""

import itertools
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig

from octo_exp.base.errors import ConfigError
from octo_exp.config import resumed
from octo_exp.config.groups import check_group, group_line_for_hydra
from octo_exp.config.help import help_text
from octo_exp.config.keys import KeyTree, check_key, made_nodes, missing_plus
from octo_exp.config.options import ConfigSpace, apply, check_complete, check_hydra, resolved, text_at
from octo_exp.config.settings import Setting, check_sweep, parse, read_setting
from octo_exp.config.trust import packages_said
from octo_exp.config.wording import one_line

# Configs composed for the options of swept groups; names are checked without composing, so none of them is missed.
_MOST_VARIANTS = 12


def check_arguments(argv: Sequence[str], *, config_dir: str | Path, config_name: str = "train") -> list[str]:
    """Raises ConfigError, in one line, for a command line that no run can be made of.

    Found: unknown groups, options and keys, also behind '+'; values of another type than the yaml's; syntax errors;
    missing values; what must be given and is not; interpolations that lead nowhere; what Hydra would call and is not
    trusted; an output folder that cannot be made. Swept values are looked at one by one, not as a product.

    --help is answered here: as with argparse, SystemExit follows.

    Returns the arguments for Hydra: flags first, and three forms that Hydra alone refuses put into those it takes
    (`+group=x` for a group that is null by default, `group=null`, and `quant.overrides.layer=x` without a '+').
    """
    argv = _with_own_model(resumed.expanded(argv))
    flags = _parse_flags(argv)
    words = _flag_words(argv, flags.overrides)
    if flags.experimental_rerun:
        raise ConfigError("--experimental-rerun loads a pickle, which may run anything; give the settings themselves")
    if flags.hydra_help or flags.shell_completion or flags.info:
        return [*words, *flags.overrides]
    space = ConfigSpace(
        config_dir=_main_dir(flags, config_dir),
        extra_dir=flags.config_dir,
        config_name=flags.config_name or config_name,
        lines=flags.overrides,
    )
    given = [read_setting(line, space) for line in flags.overrides]
    for setting in given:
        if setting.is_group:
            check_group(setting, space)
    return [*words, *_check_settings(given, flags, space)]


def _with_own_model(argv: Sequence[str]) -> list[str]:
    """Choose conf/model/own.yaml for a network that is named by its import path alone: it has no yaml of its own."""
    keys = [word.lstrip("+").partition("=")[0] for word in argv]
    return [*argv, "model=own"] if "model._target_" in keys and "model" not in keys else list(argv)


def _check_settings(given: Sequence[Setting], flags: Namespace, space: ConfigSpace) -> list[str]:
    """Checks what needs a composed config; returns the lines for Hydra."""
    multirun = flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides or space.root.hydra.mode == RunMode.MULTIRUN
    for setting in given:
        check_sweep(setting, multirun=multirun)
    runs = not (flags.help or flags.cfg)
    swept = _sweeper_settings(given, space) if multirun else []
    master = _master(given, space) if multirun else None
    cfg, keys = _check_variants([*swept, *given], space, complete=runs, master=master)
    if runs and not multirun and cfg.hydra.sweeper.get("params"):
        raise ConfigError(f"'{space.config_name}' is a sweep: add -m to run it")
    if runs:
        folder = cfg.get(resumed.KEY)
        if folder not in (None, resumed.AUTO):
            resumed.check_beside(flags.overrides, resolved(cfg), Path(str(folder)))
        _check_folders(cfg, multirun=multirun)
    elif flags.resolve:
        resolved(cfg)
    if flags.help:
        sys.stdout.write(help_text(cfg, space, get_args_parser(), program=_program(), resolve=flags.resolve) + "\n")
        sys.exit(0)
    # The sweeper's own keys come first, and Hydra has them already.
    rest = iter(keys[sum(not setting.is_group for setting in swept) :])
    return [group_line_for_hydra(s.override, space) if s.is_group else next(rest) for s in given]


def _program() -> str:
    """Return how this program was called: octo VERB, or python FILE."""
    name = Path(sys.argv[0])
    return f"python {name.name if name.is_absolute() else name}" if name.suffix == ".py" else sys.argv[0]


def _master(given: Sequence[Setting], space: ConfigSpace) -> KeyTree:
    """Returns the keys of the config that Hydra composes before a sweep: no swept group is in it."""
    groups = [s.override for s in given if s.is_group and not s.override.is_sweep_override()]
    return KeyTree(space.compose([group_line_for_hydra(o, space) for o in groups], RunMode.MULTIRUN))


def _sweeper_settings(given: Sequence[Setting], space: ConfigSpace) -> list[Setting]:
    """Returns the sweep that the yaml itself asks for, less what the command line replaces."""
    groups = [setting.override for setting in given if setting.is_group and not setting.override.is_sweep_override()]
    lines = [group_line_for_hydra(override, space) for override in groups]
    root = space.compose(lines, RunMode.MULTIRUN) if lines else space.root
    replaced = {setting.key for setting in given}
    params = root.hydra.sweeper.get("params") or {}
    settings = [read_setting(f"{key}={value}", space) for key, value in params.items() if key not in replaced]
    for setting in settings:
        if setting.key == "trust":
            raise ConfigError(
                "hydra.sweeper.params: trust does not count in a yaml; write trust=[<package>] on the line"
            )
        if setting.is_group:
            check_group(setting, space)
    return settings


def _check_variants(
    settings: Sequence[Setting], space: ConfigSpace, *, complete: bool, master: KeyTree | None
) -> tuple[DictConfig, list[str]]:
    """Composes one config for each swept option, the others held at their first.

    Returns the config of all first values, and the lines of the keys for Hydra.
    """
    groups = {setting.override.get_key_element(): setting for setting in settings if setting.is_group}
    keys = [setting for setting in settings if not setting.is_group]
    first = {name: setting.values[0] for name, setting in groups.items()}
    others = ({**first, name: value} for name, setting in groups.items() for value in setting.values[1:])
    results = []
    for variant in itertools.islice(itertools.chain([first], others), _MOST_VARIANTS):
        cfg = space.choose([group_line_for_hydra(value, space) for value in variant.values()])
        results.append((cfg, _check_keys(keys, cfg, space, master)))
        said = any(setting.key == "trust" for setting in keys)
        check_hydra(cfg, trust=packages_said(cfg.get("trust"), said=said))
        if complete:
            check_complete(cfg)
    return results[0]


def _check_keys(keys: Sequence[Setting], cfg: DictConfig, space: ConfigSpace, master: KeyTree | None) -> list[str]:
    """Checks every value of every key, then sets the first of each in `cfg`; returns the lines for Hydra.

    In a sweep, a key that its groups bring is forced: Hydra looks for it in `master`, which has none of them.
    """
    tree = KeyTree(cfg, made_nodes([(s.key, v.value()) for s in keys if not s.override.is_delete() for v in s.values]))
    for setting in keys:
        for value in setting.values:
            check_key(value, tree, space.groups)
    plus = [missing_plus(setting.values[0], tree) for setting in keys]
    apply([parse(f"{sign}{s.values[0].input_line}", space) for sign, s in zip(plus, keys, strict=True)], cfg)
    if master is not None:
        plus = [sign or _force(setting, master) for sign, setting in zip(plus, keys, strict=True)]
    return [f"{sign}{s.override.input_line}" for sign, s in zip(plus, keys, strict=True)]


def _force(setting: Setting, master: KeyTree) -> str:
    override = setting.override
    if override.is_add() or override.is_force_add() or override.is_delete() or override.is_hydra_override():
        return ""
    place = master.place(override.key_or_group)
    return "" if place.known or place.open else "++"


def _check_folders(cfg: DictConfig, *, multirun: bool) -> None:
    """Raises ConfigError where the run could not write its files."""
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    _check_writable(Path(text_at(cfg, key)).absolute(), key)
    save_dir = resolved(cfg).get("save_dir")
    if save_dir is not None:
        _check_writable(Path(str(save_dir)).absolute(), "save_dir")


def _check_writable(folder: Path, key: str) -> None:
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    remedy = f"choose another with {key}=<folder>"
    if not os.path.isdir(existing):
        raise ConfigError(f"the output folder {folder} cannot be made: {existing} is no folder; {remedy}")
    try:
        # Permission bits do not tell for root or for a read-only disk: try.
        os.rmdir(tempfile.mkdtemp(prefix=".octo-exp-", dir=existing))
    except OSError as error:
        raise ConfigError(f"the output folder {folder} cannot be written: {error.strerror}; {remedy}") from error


def _parse_flags(argv: Sequence[str]) -> Namespace:
    """Splits flags from settings, in any order; ConfigError for an unknown or half-written flag."""
    parser = get_args_parser()

    def refuse(message: str) -> None:
        unrecognized = "unrecognized" in message
        remedy = "settings are written key=value, as in trainer.max_epochs=3" if unrecognized else "see --help"
        raise ConfigError(f"{one_line(message)}: {remedy}")

    # argparse would print its usage over several lines and exit.
    parser.error = refuse  # type: ignore[method-assign, assignment]
    flags = parser.parse_intermixed_args(list(argv))
    commands = [flags.run, flags.multirun, flags.cfg, flags.shell_completion, flags.info]
    if sum(map(bool, commands)) > 1:
        raise ConfigError("only one of --run, --multirun, --cfg, --info and --shell-completion can be given")
    if flags.resolve and not (flags.cfg or flags.help):
        raise ConfigError("--resolve goes with --cfg or --help only")
    return flags


def _flag_words(argv: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Returns argv less the settings, which stand in it in the same order."""
    rest = list(settings)
    return [word for word in argv if not (rest and word == rest[0] and rest.pop(0) is not None)]


def _main_dir(flags: Namespace, config_dir: str | Path) -> str:
    """Reads --config-path as Hydra does: relative to the program's folder, which holds config_dir."""
    if flags.config_path is None:
        return str(Path(config_dir).absolute())
    if flags.config_path.startswith("pkg://"):
        return str(flags.config_path)
    folder = Path(config_dir).absolute().parent / flags.config_path
    if not folder.is_dir():
        raise ConfigError(f"--config-path: there is no folder {folder}")
    return str(folder)
