"""`resume=<folder>`: the command line of a run that goes on is its own one, with what is given beside it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from octo_exp.base.errors import ConfigError
from octo_exp.config.identity import counts, flat, may_change
from octo_exp.config.wording import one_line

KEY = "resume"
AUTO = "auto"
_CONFIG, _COMMAND, _HYDRA = "config.yaml", Path(".hydra", "overrides.yaml"), Path(".hydra", "hydra.yaml")
# What belongs to the folder of a run, not to what it is.
_OF_ONE_RUN = (KEY, "ckpt", "init_from", "train", "trust", "save_dir", "hydra.run.dir", "hydra.sweep.dir")
# What a setting also sets, by interpolation in conf/.
_FOLLOWS = {
    "hw": ("callbacks.cost",),
    "energy": ("callbacks.cost",),
    "data": ("trainer.max_epochs",),
    "data.epochs": ("trainer.max_epochs",),
}


def expanded(argv: Sequence[str]) -> list[str]:
    """The words of a command line; with resume=<folder> the folder's own settings stand before it.

    What follows `resume=` in the result was given beside it: `given_beside` finds it again.

    Raises:
        ConfigError: the folder is no run's, or other settings say where to go on.

    """
    words = list(argv)
    found = [word for word in words if word.lstrip("+").startswith(f"{KEY}=")]
    if not found:
        return words
    if len(found) > 1:
        raise ConfigError(f"{KEY}= is given {len(found)} times")
    value = _unquoted(found[0].partition("=")[2].strip())
    if value == "null":
        return words
    if any(key_of(word) == "ckpt" and not word.endswith("=null") for word in words):
        raise ConfigError(f"{KEY}= and ckpt= both say what to go on from: give one of them")
    return words if value == AUTO else _of_folder(words, found[0], Path(value).expanduser())


def _of_folder(words: list[str], own_word: str, folder: Path) -> list[str]:
    if "-m" in words or "--multirun" in words:
        raise ConfigError(
            f"{KEY}=<folder> goes on with one run; a sweep goes on where it is started again with "
            "hydra.sweep.dir=<folder>"
        )
    for word in words:
        if key_of(word) in ("hydra.run.dir", "save_dir"):
            raise ConfigError(f"'{word}': {KEY}=<folder> writes into that folder; leave {key_of(word)}= out")
    _run_folder(str(folder), f"{KEY}=")
    beside = [word for word in words if word != own_word]
    for word in beside:
        if word.startswith("~"):
            raise ConfigError(f"'{word}': a run goes on with what it has; leave it out, or start anew with init_from=")
    given = {key_of(word) for word in beside}
    command = [line for line in _command(folder) if key_of(line) not in (*given, KEY, "ckpt", "trust")]
    place = quoted(str(folder.absolute()))
    return [*_roots(folder, words), *command, f"{KEY}={place}", *beside, f"hydra.run.dir={place}"]


def _run_folder(value: str, said: str) -> Path:
    """Return a run's folder; ConfigError, which begins with what was `said`, where it is none."""
    folder = Path(value).expanduser()
    if not folder.is_dir():
        remedy = f"give a run's folder, or {KEY}={AUTO}" if said == f"{KEY}=" else "give a run's folder"
        raise ConfigError(f"{said}{value}: there is no such folder; {remedy}")
    if not (folder / _CONFIG).is_file():
        raise ConfigError(f"{said}{value}: the folder holds no {_CONFIG}; give the folder of a run of train.py")
    if not {"data", "model", "quant", "trainer", "seed"} <= set(_config(folder)):
        raise ConfigError(f"{said}{value}: its {_CONFIG} is not that of a run; copy the folder again")
    return folder


def evaluation(value: str, beside: Sequence[str]) -> list[str]:
    """Return the words that test a run's network again: its own settings, those given beside them, a new folder.

    Raises ConfigError where the folder is no run's.
    """
    folder = _run_folder(value, "eval ")
    given = {key_of(word) for word in beside}
    own = [line for line in _command(folder) if key_of(line) not in (*given, *_OF_ONE_RUN)]
    return [*_roots(folder, beside), *own, "train=false", f"ckpt={quoted(str(folder.absolute()))}", *beside]


def quoted(text: str) -> str:
    """Return text as Hydra's grammar quotes it: a backslash is doubled before a quote and at the end alone."""
    if "${" in text:
        raise ConfigError(f"{KEY}={text}: a name with '${{' in it is read as a setting's; rename the folder")
    doubled = re.sub(r"(\\+)('|$)", lambda found: found[1] * 2 + found[2], text)
    return "'" + doubled.replace("'", "\\'") + "'"


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace(f"\\{text[0]}", text[0])
    return text


def _config(folder: Path) -> dict[str, Any]:
    content = _yaml(folder / _CONFIG)
    return content if isinstance(content, dict) else {}


def _command(folder: Path) -> list[str]:
    """Return the settings that a run was started with, none where they are not known."""
    content = _yaml(folder / _COMMAND)
    return [str(line) for line in content] if isinstance(content, list) else []


def _roots(folder: Path, words: Sequence[str]) -> list[str]:
    """Return the flags of another root config and of a folder of further configs, where the run had them."""
    content = _yaml(folder / _HYDRA)
    hydra = _mapping(_mapping(content).get("hydra"))
    flags: list[str] = []
    name = _mapping(hydra.get("job")).get("config_name")
    # A sweep's root asks for -m; what it swept stands in the job's own command.
    is_sweep = bool(_mapping(hydra.get("sweeper")).get("params"))
    if name and not is_sweep and not {"-cn", "--config-name"} & set(words):
        flags += ["-cn", str(name)]
    sources = _mapping(hydra.get("runtime")).get("config_sources")
    for source in sources if isinstance(sources, list) else ():
        found = _mapping(source)
        if found.get("provider") == "command-line" and not {"-cd", "--config-dir"} & set(words):
            flags += ["-cd", str(found.get("path"))]
    return flags


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read ({one_line(error)}): copy the folder again") from error


def key_of(word: str) -> str:
    """Return the key of a setting, `data@source=mnist` giving `source`; nothing for a flag."""
    name, equals, _ = word.lstrip("+~").partition("=")
    return name.rpartition("@")[2] if equals else ""


def given_beside(settings: Sequence[str]) -> list[str]:
    """The keys of the settings that stand behind `resume=`, and of what follows from them."""
    places = [index for index, word in enumerate(settings) if key_of(word) == KEY]
    if not places:
        return []
    keys = [key for word in settings[places[0] + 1 :] if (key := key_of(word)) and not key.startswith("hydra.")]
    return list(dict.fromkeys([*keys, *(other for key in keys for other in _FOLLOWS.get(key, ()))]))


def taken(settings: Sequence[str], config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values that were given beside resume=, out of the config that a command line with them composes."""
    keys = given_beside(settings)
    for key, value in flat(config):
        # An experiment may set anything.
        if "experiment" in keys or any(key == one or key.startswith(f"{one}.") for one in keys):
            yield key, value


def check_beside(settings: Sequence[str], config: Mapping[str, Any], folder: Path) -> None:
    """ConfigError where a setting beside resume=<folder> is neither the run's own nor one that may change."""
    own = dict(flat(_config(folder)))
    for key, value in taken(settings, config):
        if counts(key) and not may_change(key) and own.get(key) != value:
            raise ConfigError(
                f"{key} is {own.get(key)} in {folder} and {value} here: a run goes on with its own settings; leave it "
                "out, or start anew with init_from="
            )
