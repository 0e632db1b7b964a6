"""`octo bench NAME [key=value ...]`: one of the measurements of octo_exp.bench."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from octo_exp.base.configs import conf_folder
from octo_exp.base.errors import ConfigError
from octo_exp.cli.words import Words, unknown
from octo_exp.config import check_arguments

# The measurements, and the settings that each has beside those of a run.
_COMMON = ("threads", "rounds", "json")
MEASUREMENTS = {
    "cost_model": ("quant", "batch", "rounds"),
    "deploy": (*_COMMON, "batches"),
    "multiplier": (*_COMMON, "batch"),
    "kernels": (*_COMMON, "impl", "batch", "compile"),
    "graphs": (*_COMMON, "models", "updates", "batches"),
    "memory": ("subject", "batch", "threads"),
    "breakdown": ("quant", "batch", "threads", "rounds"),
    "train_step": (*_COMMON, "quant", "subjects", "batch", "device", "growth"),
    "twin": ("quant", "batch"),
}
# Settings that are true or false: the flag that stands for one of them.
_SWITCHES = {"compile": ("true", "--compile"), "growth": ("false", "--no-growth")}


def main(words: Words) -> int:
    """Run the measurement that is named; return its exit code."""
    if {"-h", "--help"} & set(words.rest):
        return _tell([word for word in words.rest if not word.startswith("-")])
    name = words.given_path
    if name not in MEASUREMENTS:
        raise ConfigError(unknown("measurement", name, MEASUREMENTS))
    given = program_words(name, words.rest)
    sys.argv = [f"octo bench {name}", *given]
    code: int = importlib.import_module(f"octo_exp.bench.{name}").main(given)
    return code


def program_words(name: str, settings: Sequence[str]) -> list[str]:
    """Return the words of a measurement's own program for settings key=value; ConfigError for what is none."""
    usage = _usage(name)
    own, run, seen = [], [], set()
    for word in settings:
        key, equals, value = word.partition("=")
        if not equals or key.startswith("-"):
            raise ConfigError(f"'{word}' is no setting key=value: {usage}")
        if key not in MEASUREMENTS[name]:
            run.append(word)
            continue
        if not value or key in seen:
            raise ConfigError(f"'{word}' gives no value: {usage}" if not value else f"{key}= is given twice: {usage}")
        seen.add(key)
        own += _flag(key, value, usage)
    if name == "memory" and "subject" not in seen:
        raise ConfigError(f"subject= is missing: {usage}")
    # As a run's: an unknown one is found before torch is imported.
    check_arguments(run, config_dir=conf_folder())
    return [*own, *run]


def _flag(key: str, value: str, usage: str) -> list[str]:
    if key == "subject":
        return [value]
    if key not in _SWITCHES:
        return [f"--{key}", value]
    if value not in ("true", "false"):
        raise ConfigError(f"{unknown(key, value, ('true', 'false'))}: {usage}")
    when, flag = _SWITCHES[key]
    return [flag] if value == when else []


def _usage(name: str) -> str:
    return f"octo bench {name} {' '.join(f'[{key}=]' for key in MEASUREMENTS[name])} [key=value ...]"


def _tell(names: Sequence[str]) -> int:
    """Print what there is to measure, or how one measurement is called and what it says of itself."""
    if names[:1] and names[0] in MEASUREMENTS:
        found = importlib.util.find_spec(f"octo_exp.bench.{names[0]}")
        assert found is not None
        # Importing it would import torch.
        doc = ast.get_docstring(ast.parse(Path(str(found.origin)).read_text(encoding="utf-8")))
        sys.stdout.write(f"{_usage(names[0])}\n\n{doc}\n")
        return 0
    lines = "".join(f"  {name:12}{' '.join(f'{key}=' for key in keys)}\n" for name, keys in MEASUREMENTS.items())
    sys.stdout.write(
        f"octo bench NAME [key=value ...]\n\nNAME, and its settings beside those of octo train --help:\n\n{lines}"
    )
    return 0
