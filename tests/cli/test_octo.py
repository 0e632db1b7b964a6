"""The command `octo`: verbs, the words they take, and what they hand on."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from octo_exp.base.errors import ConfigError
from octo_exp.cli import evaluate, resume, sweep, train
from octo_exp.cli.bench import NAMES
from octo_exp.cli.entry import VERBS, main
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
    monkeypatch.setattr(train, "main", lambda words: seen.append(list(words)))
    return seen


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_main(verb: str) -> None:
    assert callable(importlib.import_module(VERBS[verb][0]).main)


def test_every_measurement_is_a_file_with_a_main(root: Path) -> None:
    files = {path.stem for path in (root / "octo_exp" / "bench").glob("*.py") if "\ndef main(" in path.read_text()}
    assert set(NAMES) == files


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {verb} " in told for verb in VERBS)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "error: unknown verb 'trian': did you mean 'train'? choose one of train, "),
        (["zzz"], "error: unknown verb 'zzz': choose one of train, "),
        (["bench", "train_stp"], "error: unknown measurement 'train_stp': did you mean 'train_step'?"),
        (["bench"], "error: unknown measurement '': choose one of"),
        (["export", "x"], "error: format= is missing"),
        (["summary", "no/such"], "error: "),
        (["predict", "x"], "error: run= must be given: octo predict IMAGES"),
        (["predict", "x", "run=a", "run=b"], "error: run= is given twice"),
        (["predict", "x", "rum=a"], "error: unknown setting 'rum': did you mean 'run'?"),
        (["predict", "x", "run="], "error: 'run=' gives no value"),
        (["predict", "no/such", "run=a"], "error: no/such: there is no such file or folder"),
        (["predict", "run=a"], "error: 0 words name images, one must"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.err.startswith(line)
    assert (told.out, told.err.count("\n")) == ("", 1)


def test_a_wrong_verb_is_answered_before_anything_is_imported(root: Path) -> None:
    code = (
        "import sys; from octo_exp.cli.entry import main; code = main(['trian']); "
        "sys.exit(code + 10 * bool({'hydra', 'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True)
    assert done.returncode == 2


def test_resume_gives_the_folder_as_hydra_reads_it(handed_on: list[list[str]]) -> None:
    resume.main(["it's a run", "trainer.max_epochs=9"])
    assert handed_on == [["resume='it\\'s a run'", "trainer.max_epochs=9"]]


def test_a_stopped_run_is_gone_on_with_by_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(train, "start", lambda folder: None)
    monkeypatch.setattr(sys, "argv", ["octo resume", "elsewhere"])
    train.main([f"resume={tmp_path}"])
    assert sys.argv == ["octo train", f"resume={tmp_path}"]
    (tmp_path / "config.yaml").touch()
    launch = sys.modules["octo_exp.config.launch"]
    monkeypatch.setattr(launch, "_folders", [tmp_path])
    monkeypatch.setattr(launch, "_sweeps", [])
    assert launch._how_to_go_on().endswith(f"to go on: octo train resume={tmp_path}")


def test_eval_tests_with_the_runs_own_settings_and_those_beside(run_folder: Path, handed_on: list[list[str]]) -> None:
    evaluate.main([str(run_folder), "data=mnist", "hydra.run.dir=new"])
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
    sweep.main([str(tmp_path / "mine.yaml"), "seed=0,1"])
    sweep.main(["transfer", "quant=int8"])
    sweep.main(["model=lenet5,vgg11"])
    assert handed_on == [
        ["-m", "-cd", str(tmp_path), "-cn", "mine", "seed=0,1"],
        ["-m", "-cd", str(root / "sweeps"), "-cn", "transfer", "quant=int8"],
        ["-m", "model=lenet5,vgg11"],
    ]


def test_a_sweep_that_is_not_there_names_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sweep.main(["no/such.yaml"])
    assert stop.value.code == 2
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
    resume.main([name, "seed=1"])
    assert handed_on == [[f"resume='{name}'", "seed=1"]]
    assert paths_of(["seed=1", name, "-q"]) == [name]
    # A word without the sign is meant first.
    assert paths_of(["run", name]) == ["run"]
    assert paths_of(["x=" + 5000 * "y"]) == []


@pytest.mark.parametrize("verb", ["eval", "resume", "predict"])
def test_a_verb_with_a_path_says_what_it_takes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        sys.exit(main([verb, "--help"]))
    assert capsys.readouterr().out.startswith(f"`octo {verb} ")


def test_a_closed_stream_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert (main(["--version"]), main(["trian"])) == (0, 2)
