"""One grammar for every verb of the table: how it is called, and what is refused, in one line and with code 2."""

import argparse
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from octo_exp.base.errors import ConfigError
from octo_exp.cli import bench
from octo_exp.cli.entry import main
from octo_exp.cli.verbs import VERBS, usage_of
from octo_exp.cli.words import read
from tests.configs import composed

CLOSED = [name for name, verb in VERBS.items() if not verb.is_open]
WITH_PATH = [name for name, verb in VERBS.items() if verb.path is not None]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with one that looks like a run's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["octo"])
    run = tmp_path / "RUN"
    (run / ".hydra").mkdir(parents=True)
    OmegaConf.save(composed("model=lenet5", "data=digits"), run / "config.yaml")
    OmegaConf.save(["model=lenet5", "data=digits"], run / ".hydra" / "overrides.yaml")
    return tmp_path


def right_words(name: str) -> list[str]:
    """Words that a verb's grammar takes: a path that is there, and each setting that must be given."""
    verb = VERBS[name]
    path = [] if verb.path is None else ["twin" if name == "bench" else "transfer" if verb.is_name else "RUN"]
    return [*path, *(word.partition("|")[0] for word in verb.needs)]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a call is refused with."""
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.parametrize("name", VERBS)
def test_help_says_how_a_verb_is_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], *([["x", "-h"]] if not VERBS[name].tells else [])):
        try:
            code = main([name, *words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert code == 0
        told = capsys.readouterr().out
        assert f"octo {name} " in told
        assert "python " not in told.split("\n\n")[0]
        assert VERBS[name].tells or told.startswith(usage_of(name))


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_a_file_whose_main_takes_its_words(name: str) -> None:
    module = importlib.import_module(VERBS[name].module)
    assert list(inspect.signature(module.main).parameters) == ["words"]
    assert (module.__doc__ or "").startswith(f"`octo {name} ")


@pytest.mark.parametrize("name", VERBS)
def test_right_words_are_read(name: str) -> None:
    words = read(name, right_words(name))
    assert (words.path is None) == (VERBS[name].path is None)
    assert list(words.values) == [word.partition("=")[0] for word in VERBS[name].needs]


@pytest.mark.parametrize("name", VERBS)
def test_an_unknown_key_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nosuchkey" in refused([name, *right_words(name), "nosuchkey=1"], capsys)


@pytest.mark.parametrize("name", VERBS)
def test_a_word_too_many_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "superfluous" in refused([name, *right_words(name), "superfluous"], capsys)


@pytest.mark.parametrize("name", VERBS)
def test_an_unknown_flag_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--nosuch" in refused([name, *right_words(name), "--nosuch"], capsys)


@pytest.mark.parametrize("name", [name for name in WITH_PATH if VERBS[name].takes_path])
def test_a_missing_path_is_named_with_the_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused([name, *right_words(name)[1:]], capsys)
    assert line == f"error: {VERBS[name].path} is missing: {usage_of(name)}\n"


@pytest.mark.parametrize("name", WITH_PATH)
def test_a_path_that_is_not_there_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no/such" in refused([name, "no/such", *right_words(name)[1:]], capsys)


@pytest.mark.parametrize("name", CLOSED)
def test_each_setting_that_must_be_given_is_asked_for(name: str) -> None:
    for word in VERBS[name].needs:
        key = word.partition("=")[0]
        rest = [given for given in right_words(name) if not given.startswith(f"{key}=")]
        with pytest.raises(ConfigError, match=f"^{key}= is missing: octo {name} "):
            read(name, rest)


@pytest.mark.parametrize("name", CLOSED)
def test_settings_are_given_once_with_a_value_that_there_is(name: str) -> None:
    for key in VERBS[name].known:
        others = [word for word in right_words(name) if not word.startswith(f"{key}=")]
        with pytest.raises(ConfigError, match=f"'{key}=' gives no value"):
            read(name, [*others, f"{key}="])
        value = VERBS[name].choices.get(key, ["x"])[0]
        with pytest.raises(ConfigError, match=f"^{key}= is given twice"):
            read(name, [*others, f"{key}={value}", f"{key}={value}"])
        if key in VERBS[name].choices:
            with pytest.raises(ConfigError, match=f"^unknown {key} 'nosuch'"):
                read(name, [*others, f"{key}=nosuch"])


@pytest.mark.parametrize("name", CLOSED)
def test_the_nearest_key_is_asked_about(name: str) -> None:
    for key in VERBS[name].known:
        with pytest.raises(ConfigError, match=f"did you mean '{key}'"):
            read(name, [*right_words(name), f"{key}x=1"])


@pytest.mark.parametrize("words", [["trian"], ["zzz"], ["--nosuch"], ["a=b"]])
def test_an_unknown_verb_is_answered_with_all_there_are(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(words, capsys)
    assert f"unknown verb '{words[0]}'" in line
    assert line.endswith(f"choose one of {', '.join(VERBS)}\n")


_TYPOS = """
import contextlib, io, sys
from octo_exp.cli.entry import VERBS, main
heavy = {"torch", "lightning", "wandb", "datasets", "matplotlib"}
assert main(["trian"]) == 2
assert not ({"hydra", "numpy", "rich"} | heavy) & set(sys.modules)
for call in CALLS:
    try:
        code = main(call)
    except SystemExit as stop:
        code = stop.code
    assert code == 2, call
    assert not heavy & set(sys.modules), (call, heavy & set(sys.modules))
"""


def test_typos_are_answered_before_anything_heavy_is_imported(root: Path, place: Path) -> None:
    """So in less than a second."""
    calls = [[name, *right_words(name), "nosuchkey=1"] for name in VERBS]
    calls += [[name, "no/such", *right_words(name)[1:]] for name in WITH_PATH]
    code = f"CALLS = {calls}\n{_TYPOS}"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_settings_of_an_export_are_those_of_its_calibration(root: Path) -> None:
    node = OmegaConf.load(root / "conf" / "quant" / "ptq.yaml").calibration
    said = {key.partition(".")[2] for key in VERBS["export"].known if key.startswith("calibration.")}
    assert said == set(node)


def test_every_measurement_is_a_file_with_a_main(root: Path) -> None:
    files = {path.stem for path in (root / "octo_exp" / "bench").glob("*.py") if "\ndef main(" in path.read_text()}
    assert set(bench.MEASUREMENTS) == files


@pytest.mark.parametrize("name", bench.MEASUREMENTS)
def test_a_measurement_s_settings_are_the_flags_of_its_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"threads": "1", "rounds": "1", "batch": "2", "batches": "2", "impl": "torch", "device": "cpu"}
    words = [
        f"{key}={values.get(key, 'true' if key == 'compile' else 'false' if key == 'growth' else 'x')}"
        for key in bench.MEASUREMENTS[name]
    ]
    seen: list[argparse.Namespace] = []

    def reading(self: argparse.ArgumentParser, given: list[str]) -> None:
        options, rest = self.parse_known_intermixed_args(given)
        assert not rest
        flags = {action.dest.replace("no_growth", "growth") for action in self._actions}
        assert flags == {*bench.MEASUREMENTS[name], "overrides", "help"}
        seen.append(options)
        raise ConfigError("read")

    given = bench.program_words(name, [*words, "model=lenet5"])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", reading)
    with pytest.raises(ConfigError, match="read"):
        importlib.import_module(f"octo_exp.bench.{name}").main(given)
    assert seen[0].overrides == ["model=lenet5"]


def test_a_measurement_says_what_it_takes_without_importing_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "twin", "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("octo bench twin [quant=] [batch=] [key=value ...]\n\n")
    assert len(told.splitlines()) > 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["twin", "batch="], "'batch=' gives no value"),
        (["twin", "batch=1", "batch=2"], "batch= is given twice"),
        (["kernels", "compile=maybe"], "unknown compile 'maybe'"),
        (["memory"], "subject= is missing"),
        (["twinn"], "unknown measurement 'twinn': did you mean 'twin'"),
    ],
)
def test_a_measurement_that_cannot_be_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refused(["bench", *words], capsys)
