"""The site of docs/ and docstrings: every page has its place, and it builds strictly, links checked."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import octo_exp
from tests.test_arrows import ROOMS


def _leaves(node: Any) -> list[str]:
    if isinstance(node, str):
        return [node]
    return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in _leaves(child)]


def test_every_page_stands_in_the_navigation(root: Path) -> None:
    pages = {page.relative_to(root / "docs").as_posix() for page in (root / "docs").rglob("*.md")}
    # Of the tree's top.
    made = {"index.md", "contributing.md", "changelog.md"}
    assert set(_leaves(yaml.safe_load((root / "mkdocs.yml").read_text())["nav"])) == pages | made


@pytest.mark.optional
@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_a_page_for_each_room(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    site = tmp_path / "site"
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(site)]
    done = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {page.parent.name for page in (site / "reference").glob("*/index.html")} == ROOMS.keys() - {"__main__"}
    door = (site / "reference" / "index.html").read_text()
    assert all(f"octo_exp.{name}" in door for name in octo_exp.__all__)
    # Read without a network.
    assert "fonts.googleapis.com" not in door
