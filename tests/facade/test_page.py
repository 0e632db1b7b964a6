"""docs/library.md runs as it stands."""

import re
from pathlib import Path

import pytest

from octo_exp.cli.entry import VERBS

BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def blocks(root: Path) -> list[tuple[str, str]]:
    return BLOCK.findall((root / "docs" / "library.md").read_text())


def test_its_python_runs_in_order(
    blocks: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "docs/library.md", "exec"), names)
    assert "QuantConv2d" in capsys.readouterr().out


def test_its_commands_are_verbs(blocks: list[tuple[str, str]]) -> None:
    lines = [line for kind, text in blocks if kind == "bash" for line in text.splitlines()]
    assert {line.split()[1] for line in lines} <= {*VERBS, "--help"}
    assert len(lines) > 3
