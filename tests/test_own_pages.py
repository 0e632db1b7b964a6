"""docs/own/*.md as a stranger follows them: in an empty folder outside the checkout, every block as it stands there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = ROOT / "docs" / "own"
# A file that the page names before a block is what the block is.
_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_FILE = re.compile(r"`([\w./]+\.(?:py|yaml))`")
SHORT = ("logger=csv", "data.epochs=1", "data.limit_train=200", "data.limit_test=60", "hw=[]")


def call(folder: Path, *words: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # Where the package is not installed from this checkout.
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def follow(page: str, folder: Path) -> None:
    text = (PAGES / f"{page}.md").read_text()
    said = 0
    for block in _BLOCK.finditer(text):
        language, content = block.groups()
        files = _FILE.findall(text[said : block.start()])
        said = block.end()
        if language in ("python", "yaml") and files:
            (folder / files[-1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / files[-1]).write_text(content)
        elif language == "python":
            call(folder, "-c", content)
        elif language == "bash":
            for line in content.splitlines():
                program, script, *words = shlex.split(line)
                assert (program, script) == ("python", "train.py")
                call(folder, str(ROOT / "train.py"), *words, *SHORT)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("page", ["callback", pytest.param("data", marks=pytest.mark.slow)])
def test_a_page_can_be_followed(page, tmp_path):
    follow(page, tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    found = results(run)
    assert 0 <= found["test/acc"] <= 1
    assert page != "callback" or found["mine/seconds"] > 0


@pytest.mark.slow
def test_the_pages_of_networks_and_weights_can_be_followed(tmp_path):
    follow("network", tmp_path)
    assert results(tmp_path / "runs" / "net")["model"] == "own"
    assert results(tmp_path / "runs" / "mine")["model"] == "mine"
    follow("weights", tmp_path)
    log = (tmp_path / "runs" / "tuned" / "train.log").read_text()
    assert "4 of 6 tensors are taken" in log
    assert "start anew: classifier.weight, classifier.bias" in log


def test_every_page_stands_in_the_readme_and_is_followed():
    readme = (ROOT / "README.md").read_text()
    pages = {path.stem for path in PAGES.glob("*.md")}
    assert pages == {"callback", "data", "network", "weights"}
    assert all(f"docs/own/{page}.md" in readme for page in pages)
