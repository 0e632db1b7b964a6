"""Each command of README.md and docs/ runs for real, at a tiny size on the digits; those that cannot say why."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from octo_exp.cli.entry import main
from tests.conftest import ROOT
from tests.test_commands import commands

# What a command has that is not run here, and why.
NOT_RUN = {
    r"^pip ": "needs the network",
    r"^pytest$": "is this suite",
    r"^octo fetch": "needs the network; tests/graph/test_fetch.py",
    r"experiment=transfer|compare_updates|mcu_transfer|bench\.graphs": "needs the released graphs",
    r"data\.root=": "needs data sets that its page has made; tests/test_own_pages.py",
    r"trust=\[m|my\.Net": "needs the files of its page; tests/test_own_pages.py",
    r"runs/(float|int8|tuned|again|vgg11\.pkl)": "a chain of its own; tests/test_walkthrough.py",
    r"update\.budget_kb": "searches for minutes; tests/test_walkthrough.py",
    r"\.\.\.": "a placeholder of a folder",
    r"^octo (\w+)$": "the name of a verb",
    r"hw\.scalesim|run_numpy": "needs files of SCALE-Sim or of an export; tests/hw, tests/exports",
    r"tests\.|compare_searches": "a test or a study of minutes by itself",
    r"examples\.": "runs in tests/examples",
    r"-cn transfer|octo sweep transfer": "a matrix of runs; tests/config/test_launch.py",
    r"data=cifar100_20c": "needs that set's classes",
}
TINY = ["data=digits", "data.limit_train=64", "data.limit_test=32", "data.batch_size=16", "logger=csv"]
# What a program of flags takes for the least work; an argument that is given again counts.
LEAST = {"rounds": "1", "batch": "2", "batches": "2"}


def reason(words: list[str]) -> str | None:
    """Why a command is not run here, or None."""
    text = " ".join(words)
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, text)), None)


def tiny(words: list[str]) -> list[str]:
    """The settings of a run at a tiny size: of swept values the first."""
    kept = [word for word in words if not word.startswith("data=") and word != "-m"]
    first = [word.partition(",")[0] if not re.search(r"[\[{]", word) else word for word in kept]
    length = [] if any(word.startswith("trainer.max_epochs=") for word in first) else ["data.epochs=1"]
    goes_on = any(word.startswith("resume=R") for word in first)
    return first if goes_on else [*first, *TINY, *length]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages presume: a run in RUN, runs/lenet5 and runs/vgg11, an image in IMAGES."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "IMAGES").mkdir()
    Image.new("L", (8, 8), 128).save(folder / "IMAGES" / "x.png")
    return folder


@pytest.fixture
def _there(place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.chdir(place)
    # What goes on with settings of its own must not find a run that another command made longer.
    if "hydra.run.dir=RUN" in words:
        shutil.rmtree("RUN", ignore_errors=True)
    monkeypatch.setattr(sys, "argv", ["octo"])
    for name in ("RUN", "runs/lenet5", "runs/vgg11"):
        if not Path(name).exists():
            assert octo("train", *tiny(["model=lenet5", "quant=octo", f"hydra.run.dir={name}"])) == 0


def octo(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as stop:
        return int(stop.code or 0)


def run_program(module: str, words: list[str]) -> int:
    """A program of octo_exp.bench, for the least work."""
    program = importlib.import_module(module)
    from octo_exp.cli.bench import MEASUREMENTS

    known = MEASUREMENTS[module.rpartition(".")[2]]
    least = [part for key, value in LEAST.items() if key in known for part in (f"--{key}", value)]
    return int(program.main([*words, *least]))


COMMANDS = [words for words in commands() if reason(words) is None]


@pytest.mark.slow
@pytest.mark.usefixtures("_there")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_runs_at_a_tiny_size(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *rest = words
    if program == "octo":
        if rest[0] in ("train", "sweep"):
            rest = [rest[0], *tiny(rest[1:])]
        code = octo(*rest)
    elif rest[0] == "-m":
        code = run_program(rest[1], rest[2:])
    elif rest[0] == "sweeps/dse.py":
        code = octo(
            "dse", *rest[1:], *([] if "data.batch_size=1" in rest else ["data=digits"]), f"hydra.run.dir={tmp_path}"
        )
    else:
        assert rest[0] == "train.py"
        code = octo("train", *(rest[1:] if "--help" in rest else tiny(rest[1:])))
    assert code == 0, capsys.readouterr().err[-2000:]


def test_every_reason_not_to_run_is_of_a_command_that_there_is() -> None:
    texts = [" ".join(words) for words in commands()]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, text) for text in texts)] == []
    assert len(COMMANDS) > 40
    assert all((ROOT / words[1]).is_file() for words in COMMANDS if words[0] == "python" and words[1] != "-m")
