"""Every command of README.md and docs/ is one that its program takes: the command line is checked, nothing is run."""

import argparse
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from octo_exp.base.errors import UserError
from octo_exp.cli.verbs import VERBS
from octo_exp.cli.words import paths_of, read
from octo_exp.config import check_arguments
from octo_exp.exports.request import parse
from tests.configs import CONF, composed
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Programs whose settings are those of another root config than train.py's.
ROOTS = {"sweeps/dse.py": "dse", "sweeps.compare_searches": "dse"}


class Parsed(BaseException):
    """Told in the place of running: what argparse made of the words."""


def in_blocks(text: str) -> Iterator[str]:
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def in_sentences(text: str) -> Iterator[str]:
    """Commands between backticks; one that ends in ... is completed by each row of the table below it."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for found in re.finditer(r"`([^`]+)`", prose):
        command = " ".join(found[1].split())
        if command.endswith(" ..."):
            rows = prose[found.end() :].split("\n\n")[0]
            yield from (f"{command[:-4]} {row}" for row in re.findall(r"^\| `([^`]+)`", rows, re.MULTILINE))
        else:
            yield command


def commands() -> list[list[str]]:
    """The words of every command, once, without the environment's settings before it."""
    lines = (line for page in PAGES for form in (in_blocks, in_sentences) for line in form(page.read_text()))
    found = []
    for line in lines:
        for part in line.split(" && ") if re.match(r"(\w+=\S+ )*(python|pip|pytest|octo) ", line) else ():
            words = shlex.split(part, comments=True)
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            # The grammar itself is no command.
            if words not in found and words[:2] != ["octo", "VERB"]:
                found.append(words)
    return found


def settings_of(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a program's own parser read the words; return the settings of train.py among them."""

    def strictly(self: argparse.ArgumentParser, given: list[str] | None = None, namespace: object = None) -> None:
        options, rest = self.parse_known_args(given, namespace)
        assert not rest, f"{module} does not know {rest}"
        raise Parsed(options)

    program = importlib.import_module(f"{module}.__main__" if module == "octo_exp.hw.scalesim" else module)
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", strictly)
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", strictly)
        with pytest.raises(Parsed) as told:
            program.main(words)
    return list(getattr(told.value.args[0], "overrides", []))


def check_settings(words: list[str], program: str) -> None:
    """Check settings as train.py does; a program that looks at several sets or schemes is a sweep of them."""
    swept = any("," in word and not re.search(r"[\[{]", word) for word in words if not word.startswith("-"))
    flags = ["-m"] if swept and "-m" not in words else []
    check_arguments([*flags, *words], config_dir=CONF, config_name=ROOTS.get(program, "train"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where a stranger stands: with the checkout's sweeps, a run in RUN, and a network of their own."""
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    (tmp_path / "RUN").mkdir()
    OmegaConf.save(composed("model=lenet5", "quant=octo", "data=mnist", "data.root=null"), tmp_path / "RUN/config.yaml")
    own = tmp_path / "conf/model/mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/own/network.md").read_text(), re.DOTALL)[-1])
    monkeypatch.chdir(tmp_path)


def test_every_program_takes_the_flags_of_its_commands(place, monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for program, *words in commands():
        if program == "pip":
            assert re.fullmatch(r"\.\[(\w+)\]", words[-1])[1] in extras
        elif program == "python" and words[0] == "-m":
            assert importlib.util.find_spec(words[1]), words[1]
            if words[2:]:
                assert all("=" in setting for setting in settings_of(words[1], words[2:], monkeypatch)), words
        elif program == "python":
            assert (ROOT / words[0]).is_file()


def test_every_verb_takes_the_words_of_its_commands(place):
    """A verb's own settings are read; those of a run are checked with train.py's."""
    read_ones = set()
    for program, *words in commands():
        if program != "octo" or words == ["--help"]:
            continue
        verb, *rest = words
        assert verb in VERBS
        if not rest:
            continue
        for path in paths_of(rest):
            Path(path).mkdir(parents=True, exist_ok=True)
        given = read(verb, rest)
        if verb == "export":
            parse([f"run={given.path}", *(f"{key}={value}" for key, value in given.values.items())])
        read_ones.add(verb)
    assert {"train", "sweep", "resume", "eval", "predict", "export", "graph"} <= read_ones


# Half a second a command.
@pytest.mark.slow
def test_every_setting_of_a_command_is_one_that_its_program_takes(place, monkeypatch):
    checked = 0
    for words in (words[1:] for words in commands() if words[0] == "python" or words[:2] == ["octo", "train"]):
        name, rest = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        if not rest or rest == ["--help"]:
            continue
        settings = settings_of(name, rest, monkeypatch) if words[0] == "-m" else rest
        if settings:
            check_settings(settings, name)
            checked += 1
    assert checked > 40


def test_every_program_that_a_message_or_a_comment_names_can_be_run():
    files = [*(ROOT / "octo_exp").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]
    named = {
        name
        for file in files
        for name in re.findall(r"python -m ((?:octo_exp|sweeps)[\w.]*\w)", file.read_text("utf-8"))
    }
    assert len(named) > 8
    for name in sorted(named):
        place = ROOT.joinpath(*name.split("."))
        starts = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        assert starts.is_file(), name
        assert place.is_dir() or '__name__ == "__main__"' in starts.read_text("utf-8"), name


def test_a_command_that_nothing_takes_is_found(place, monkeypatch):
    with pytest.raises(UserError, match="MODEL"):
        check_settings(settings_of("sweeps.compare_searches", ["MODEL"], monkeypatch), "sweeps.compare_searches")
    with pytest.raises(AssertionError, match="--rounded"):
        settings_of("octo_exp.bench.deploy", ["--rounded"], monkeypatch)


def test_a_command_between_backticks_may_be_completed_by_a_table():
    text = "| command `python train.py -m ...` | x |\n|---|---|\n| `a=1` | 2 |\n| `b=2` | 3 |\n\n| `c=3` |"
    assert list(in_sentences(text))[:2] == ["python train.py -m a=1", "python train.py -m b=2"]
