"""Checks `group=option`: is there such a group, has it that option."""

from hydra.core.override_parser.types import Override

from octo_exp.base.errors import ConfigError
from octo_exp.config.options import ConfigSpace
from octo_exp.config.settings import Setting
from octo_exp.config.wording import listed, unknown, unknown_place

# Exactly one option of each makes a run.
REQUIRED_GROUPS = ("data", "model", "quant", "kernel", "optim", "trainer")


def check_group(setting: Setting, space: ConfigSpace) -> None:
    """Raises ConfigError for an unknown group or option, or a prefix that makes no sense."""
    override, key = setting.override, setting.key
    group = override.key_or_group
    if override.is_force_add():
        raise ConfigError(f"'{override.input_line}': a group takes no '++', write {key}=<option>")
    if key not in space.choices and (override.package is not None or group not in space.groups):
        raise unknown_place("group", key, [*space.choices, *space.groups], beside=space.groups)
    if override.is_delete():
        _check_left_out(setting, space)
        return
    if override.is_add() and space.choices.get(key) is not None:
        raise ConfigError(f"'{override.input_line}': {key} is chosen already, leave out the '+'")
    for single in setting.values:
        value = single.value()
        if value is None:
            _check_left_out(setting, space)
            continue
        if isinstance(value, list) and group in REQUIRED_GROUPS:
            raise ConfigError(f"'{single.input_line}': {key} takes one option, {key}=a,b with -m runs each")
        for option in value if isinstance(value, list) else [value]:
            _check_option(option, group, key, space)


def _check_left_out(setting: Setting, space: ConfigSpace) -> None:
    """Raises ConfigError for `~group` or `group=null` where the group cannot be left out."""
    line, key = setting.override.input_line, setting.key
    if len(setting.values) > 1:
        raise ConfigError(f"'{line}': a sweep cannot leave out {key}, run that job on its own")
    if key in REQUIRED_GROUPS:
        raise ConfigError(f"'{line}': a run needs {key}; options: {listed(space.options(key))}")
    if key not in space.choices:
        raise ConfigError(f"'{line}': {key} is a list, write {key}=[] for none")


def _check_option(option: object, group: str, key: str, space: ConfigSpace) -> None:
    """Raises ConfigError unless the group, or its subfolder that the option names, has it."""
    name = "null" if option is None else str(option)
    folder, _, leaf = name.rpartition("/")
    if option is None or leaf not in space.options(f"{group}/{folder}" if folder else group):
        raise unknown(key, name, space.options(group))


def group_line_for_hydra(override: Override, space: ConfigSpace) -> str:
    """Returns the line in the form that Hydra takes: no '+' for a group of the defaults list, '~group' for null."""
    line = str(override.input_line)
    key = override.get_key_element().lstrip("~+")
    if override.is_delete() or key not in space.choices:
        return line
    if not override.is_sweep_override() and override.value() is None:
        return f"~{key}"
    return line.lstrip("+")
