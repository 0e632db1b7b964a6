"""Runs that are stopped and gone on with, as train.py's user meets them; the runs themselves are stubs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from octo_exp.base.errors import ConfigError
from octo_exp.config.resumed import check_beside, expanded, given_beside

Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run leaves it."""
    folder = tmp_path / "a run's, [folder]"
    (folder / ".hydra").mkdir(parents=True)
    config = {"seed": 3, "model": {"name": "lenet5"}, "hw": {"tpu_v1": {"rows": 256}}, "trainer": {"max_epochs": 3}}
    config |= {"data": {}, "quant": {}, "callbacks": {"checkpoint": {"dirpath": "there"}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "overrides.yaml").write_text("- model=lenet5\n- seed=3\n- trust=[my]\n- ckpt=x\n")
    sources = [{"provider": "main", "path": "conf"}, {"provider": "command-line", "path": "/my/conf"}]
    hydra = {"hydra": {"job": {"config_name": "transfer"}, "runtime": {"config_sources": sources}}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))
    return folder


def test_a_folders_own_command_stands_before_what_is_given(run: Path) -> None:
    words = expanded(["trainer.max_epochs=5", f"resume={run}", "seed=3"])
    place = "'" + str(run).replace("'", "\\'") + "'"
    own = ["-cn", "transfer", "-cd", "/my/conf", "model=lenet5"]
    assert words == [*own, f"resume={place}", "trainer.max_epochs=5", "seed=3", f"hydra.run.dir={place}"]
    # Nobody's folder says whom to trust.
    assert not any("trust" in word for word in words)
    assert given_beside([word for word in words if "=" in word]) == ["trainer.max_epochs", "seed"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["resume=auto", "ckpt=x"], "give one of them"),
        (["resume={run}", "ckpt=x"], "give one of them"),
        (["resume={run}", "resume=auto"], "given 2 times"),
        (["resume={run}", "~callbacks.cost"], "a run goes on with what it has"),
        (["-m", "resume={run}"], "a sweep goes on where it is started again"),
        (["resume={run}", "hydra.run.dir=there"], "writes into that folder"),
        (["resume={run}/nothing"], "there is no such folder"),
        (["resume={run}/.hydra"], "holds no config.yaml"),
    ],
)
def test_what_cannot_be_gone_on_with_is_one_line(run: Path, words: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        expanded([word.format(run=run) for word in words])


@pytest.mark.parametrize("name", ["j\\2", "tail\\", "it's, [x] = {y}", "a\\'b"])
def test_a_folders_name_is_read_as_it_is(tmp_path: Path, run: Path, name: str) -> None:
    folder = run.rename(tmp_path / name)
    (line,) = [word for word in expanded([f"resume={folder}"]) if word.startswith("hydra.run.dir=")]
    override = OverridesParser.create().parse_overrides([line])[0]
    assert override.value() == str(folder)


def test_a_name_that_hydra_would_fill_in_is_refused(tmp_path: Path, run: Path) -> None:
    folder = run.rename(tmp_path / "dol${seed}")
    with pytest.raises(ConfigError, match="rename the folder"):
        expanded([f"resume={folder}"])


@pytest.mark.parametrize(
    "text", ["- 5", "hydra: 5", "hydra: {job: null, runtime: null}", "hydra: {runtime: {config_sources: [5]}}"]
)
def test_a_torn_note_of_the_command_is_no_traceback(run: Path, text: str) -> None:
    (run / ".hydra" / "hydra.yaml").write_text(text)
    assert not any(word.startswith("-c") for word in expanded([f"resume={run}"]))


def test_the_root_of_a_sweep_is_not_that_of_its_jobs(run: Path) -> None:
    (run / ".hydra" / "hydra.yaml").write_text(
        "hydra: {job: {config_name: transfer}, sweeper: {params: {seed: '1,2'}}}"
    )
    assert "-cn" not in expanded([f"resume={run}"])


@pytest.mark.parametrize("text", ["", "[1]", "hello", "seed: 0", "{torn"])
def test_a_config_that_is_none_is_one_line(run: Path, text: str) -> None:
    (run / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="copy the folder again"):
        expanded([f"resume={run}"])


def test_null_and_auto_leave_the_command_as_it_is() -> None:
    for words in (["resume=auto", "seed=1"], ["resume=null", "ckpt=x"], ["seed=1"], ["resume=auto", "ckpt=null"]):
        assert expanded(words) == words


def test_settings_beside_it_are_the_runs_own_or_may_change(run: Path) -> None:
    settings = ["model=lenet5", "resume=x", "seed=3", "hw=other", "trainer.max_epochs=5"]
    here = {"seed": 3, "model": {"name": "vgg11"}, "hw": {"other": {"rows": 1}}, "trainer": {"max_epochs": 5}}
    check_beside(settings, here, run)
    # Places follow the folder.
    check_beside([*settings, "callbacks=default"], {**here, "callbacks": {"checkpoint": {"dirpath": "here"}}}, run)
    with pytest.raises(ConfigError, match=r"seed is 3 in .* and 4 here"):
        check_beside(settings, {**here, "seed": 4}, run)
    # The same for a group, and for what an experiment sets.
    with pytest.raises(ConfigError, match=r"model\.name is lenet5"):
        check_beside([*settings, "model=vgg11"], here, run)
    with pytest.raises(ConfigError, match=r"model\.name is lenet5"):
        check_beside([*settings, "experiment=claim"], here, run)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR2", 143)])
def test_a_signal_is_one_line_with_the_command_to_go_on(train: Train, tmp_path: Path, name: str, code: int) -> None:
    done = train(f"seed={ {'SIGTERM': 20, 'SIGINT': 21, 'SIGUSR2': 22}[name] }", "hydra.run.dir=here")
    here = tmp_path / "here"
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == (
        f"stopped by {name}; what was done lies in {here}; to go on: python train.py resume={here}\n"
    )
    assert sorted(path.name for path in here.iterdir()) == ["config.yaml"]


def test_a_signal_ends_the_sweep_with_the_table_of_what_is_done(train: Train, tmp_path: Path) -> None:
    done = train("-m", "seed=1,20,2", "hydra.sweep.dir=sweep")
    assert done.returncode == 143
    assert "1 job" in done.stdout
    assert "not finished: job 1" in done.stdout
    assert done.stderr == (
        "stopped by SIGTERM in job 1; to go on: python train.py -m seed=1,20,2 hydra.sweep.dir=sweep\n"
    )
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/results.json")) == ["0"]


def test_a_second_sweep_in_the_same_folder_is_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    code = "import time; from octo_exp.base.lock import hold\nwith hold('sweep'): print(1, flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        done = train("-m", "seed=1,2", "hydra.sweep.dir=sweep")
    finally:
        holder.kill()
        holder.communicate()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: sweep: this sweep is in use by process {holder.pid} on ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("sweep/*/*"))


@pytest.mark.parametrize("name", ["config.yaml", "thesis.tex"])
def test_a_failure_in_a_folder_of_others_writes_nothing_there(train: Train, tmp_path: Path, name: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / name).write_text("seed: 1\n")
    (here / "failed.json").write_text("{}")
    assert train("seed=13", "hydra.run.dir=here").returncode == 2
    assert (here / "failed.json").read_text() == "{}"
    assert sorted(path.name for path in here.iterdir()) == sorted([name, "failed.json"])
