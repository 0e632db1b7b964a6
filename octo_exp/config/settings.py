"""Reads one setting of the command line: its syntax, its value or values, and whether it chooses a group's option."""

import itertools
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from octo_exp.base.errors import ConfigError
from octo_exp.config.options import ConfigSpace
from octo_exp.config.wording import listed, one_line

# Values of one sweep that are looked at: a long range() is of one type.
_MOST_VALUES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One override as it was given, and the same with each of its swept values (one where nothing is swept)."""

    override: Override
    values: tuple[Override, ...]
    is_group: bool

    @property
    def key(self) -> str:
        """The group or dotted key, with its package: data@source."""
        return self.override.get_key_element().lstrip("~+")


def read_setting(line: str, space: ConfigSpace) -> Setting:
    """Reads `key=value`, `+key=value` or `~key`; ConfigError for a syntax error, or where the value is missing."""
    name, equals, value = line.partition("=")
    group = name.lstrip("~+").partition("@")[0]
    if not group:
        raise ConfigError(f"'{line}' has no key: settings are written key=value")
    if not equals and not name.startswith("~"):
        options = space.options(group) if group in space.groups else []
        example = f"{name}=<option>; options: {listed(options)}" if options else "key=value"
        raise ConfigError(f"'{line}' has no '=': settings are written {example}")
    if equals and not value.strip():
        options = space.options(group) if group in space.groups else []
        remedy = f"options: {listed(options)}" if options else "write null for none, '\"\"' for empty text"
        raise ConfigError(f"'{line}' has no value: {remedy}")
    override = parse(line, space)
    named = override.get_key_element().lstrip("~+") in space.groups or bool(space.options(override.key_or_group))
    is_group = named and not isinstance(override.value(), dict)
    return Setting(override=override, values=_single_values(override, space), is_group=is_group)


def check_sweep(setting: Setting, *, multirun: bool) -> None:
    """Raises ConfigError for several values where one is wanted."""
    override = setting.override
    if not override.is_sweep_override():
        return
    if override.is_hydra_override():
        raise ConfigError(f"'{override.input_line}': Hydra's own settings cannot be swept")
    if not multirun:
        value = override.get_value_string()
        listing = "" if "(" in value else f", or write {setting.key}=[{value}] where one list is meant"
        raise ConfigError(f"'{override.input_line}' holds several values: add -m to run each{listing}")


def parse(line: str, space: ConfigSpace) -> Override:
    """Reads one override with Hydra's parser; ConfigError for a syntax error."""
    try:
        return OverridesParser.create(config_loader=space.loader).parse_overrides([line])[0]
    except HydraException as error:
        reason = one_line(error).partition(" See https://")[0]
        raise ConfigError(f"cannot read '{line}': {reason}; text with special characters needs quotes") from error


def _single_values(override: Override, space: ConfigSpace) -> tuple[Override, ...]:
    """Returns the override once for each value of its sweep; ConfigError for a sweep of nothing."""
    if not override.is_sweep_override():
        return (override,)
    line = override.input_line
    if override.is_interval_sweep():
        raise ConfigError(f"'{line}': interval() needs a sweeper that samples; write range(start,stop,step) or a,b,c")
    try:
        texts = list(dict.fromkeys(itertools.islice(override.sweep_string_iterator(), _MOST_VALUES)))
    except (HydraException, ArithmeticError, ValueError) as error:
        raise ConfigError(f"cannot read '{line}': {one_line(error)}") from error
    if not texts:
        raise ConfigError(f"'{line}' has no values: there is nothing to run")
    return tuple(parse(f"{override.get_key_element()}={text}", space) for text in texts)
