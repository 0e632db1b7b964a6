"""docs/library.md runs as it stands."""

from pathlib import Path

import pytest

from octo_exp.cli.entry import VERBS
from tests.pages import blocks, run_python


@pytest.fixture
def page(root: Path) -> Path:
    return root / "docs" / "library.md"


def test_its_python_runs_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(page)
    assert "QuantConv2d" in capsys.readouterr().out


def test_its_commands_are_verbs(page: Path) -> None:
    lines = [line for kind, text in blocks(page) if kind == "bash" for line in text.splitlines()]
    assert {line.split()[1] for line in lines} <= {*VERBS, "--help"}
    assert len(lines) > 3
