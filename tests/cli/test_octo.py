"""The command `octo`: verbs, the words they take, and what they hand on."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from octo_exp.base.errors import ConfigError
from octo_exp.cli import train
from octo_exp.cli.entry import main
from octo_exp.cli.verbs import VERBS
from octo_exp.cli.words import paths_of
from octo_exp.config.resumed import evaluation

SETTINGS = ["model=lenet5", "quant=octo", "data=digits", "train=true", "hydra.run.dir=elsewhere", "init_from=old"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a run"
    (folder / ".hydra").mkdir(parents=True)
    nodes: dict[str, Any] = {key: {} for key in ("data", "model", "quant", "trainer")}
    (folder / "config.yaml").write_text(yaml.safe_dump({**nodes, "seed": 0}))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words that reach training."""
    seen: list[list[str]] = []

    def begin(words: list[str]) -> int:
        seen.append(list(words))
        return 0

    monkeypatch.setattr(train, "begin", begin)
    monkeypatch.setattr(sys, "argv", ["octo"])
    return seen


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {verb} " in told for verb in VERBS)


def test_resume_gives_the_folder_as_hydra_reads_it(
    handed_on: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("it's a run").mkdir()
    main(["resume", "it's a run", "trainer.max_epochs=9"])
    assert handed_on == [["resume='it\\'s a run'", "trainer.max_epochs=9"]]


def test_a_stopped_run_is_gone_on_with_by_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(train, "start", lambda folder: None)
    monkeypatch.setattr(sys, "argv", ["octo resume", "elsewhere"])
    train.begin([f"resume={tmp_path}"])
    assert sys.argv == ["octo train", f"resume={tmp_path}"]
    (tmp_path / "config.yaml").touch()
    launch = sys.modules["octo_exp.config.launch"]
    monkeypatch.setattr(launch, "_folders", [tmp_path])
    monkeypatch.setattr(launch, "_sweeps", [])
    assert launch._how_to_go_on().endswith(f"to go on: octo train resume={tmp_path}")


def test_eval_tests_with_the_runs_own_settings_and_those_beside(run_folder: Path, handed_on: list[list[str]]) -> None:
    main(["eval", str(run_folder), "data=mnist", "hydra.run.dir=new"])
    ckpt = f"ckpt='{run_folder}'"
    assert handed_on == [["model=lenet5", "quant=octo", "train=false", ckpt, "data=mnist", "hydra.run.dir=new"]]


@pytest.mark.parametrize(("name", "words"), [("no/such", "no such folder"), (".", "holds no config.yaml")])
def test_eval_of_what_is_no_run_is_one_line(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        evaluation(str(tmp_path / name), [])


def test_a_sweep_is_a_multirun_of_a_file_or_of_one_of_ours(
    tmp_path: Path, root: Path, handed_on: list[list[str]]
) -> None:
    (tmp_path / "mine.yaml").write_text("")
    main(["sweep", str(tmp_path / "mine.yaml"), "seed=0,1"])
    main(["sweep", "transfer", "quant=int8"])
    main(["sweep", "model=lenet5,vgg11"])
    main(["sweep", "-cd", "a folder", "--config-name", "x", "seed=0,1"])
    assert handed_on == [
        ["-m", "-cd", str(tmp_path), "-cn", "mine", "seed=0,1"],
        ["-m", "-cd", str(root / "sweeps"), "-cn", "transfer", "quant=int8"],
        ["-m", "model=lenet5,vgg11"],
        ["-m", "-cd", "a folder", "--config-name", "x", "seed=0,1"],
    ]


def test_a_sweep_that_is_not_there_names_those_that_are(
    capsys: pytest.CaptureFixture[str], handed_on: list[list[str]]
) -> None:
    assert main(["sweep", "no/such.yaml"]) == 2
    assert (
        capsys.readouterr().err
        == "error: there is no sweep no/such.yaml: give a yaml file, or one of mcu_transfer, transfer\n"
    )


@pytest.mark.parametrize("name", ["a b=c", "key=value"])
def test_a_folder_with_an_equals_sign_is_a_path(
    name: str, tmp_path: Path, handed_on: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    main(["resume", name, "seed=1"])
    assert handed_on == [[f"resume='{name}'", "seed=1"]]
    assert paths_of(["seed=1", name, "-q"]) == [name]
    # A word without the sign is meant first.
    assert paths_of(["run", name]) == ["run"]
    assert paths_of(["x=" + 5000 * "y"]) == []


def test_a_closed_stream_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert (main(["--version"]), main(["trian"])) == (0, 2)
