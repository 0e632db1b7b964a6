"""docs/library.md and the README run as they stand; no page's link leads nowhere."""

import re
from pathlib import Path

import pytest

from octo_exp.cli.verbs import VERBS
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


def test_the_readme_s_python_runs_and_it_is_a_front_door(root: Path) -> None:
    run_python(root / "README.md")
    assert len((root / "README.md").read_text().split()) <= 1000


def test_no_link_of_a_page_leads_nowhere(root: Path) -> None:
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"


def test_its_commands_are_verbs(page: Path) -> None:
    lines = [line for kind, text in blocks(page) if kind == "bash" for line in text.splitlines()]
    assert {line.split()[1] for line in lines} <= {*VERBS, "--help"}
    assert len(lines) > 3
