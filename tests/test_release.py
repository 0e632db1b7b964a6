"""What a release says of itself: its version, its changes, and what its wheel holds."""

import datetime
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from octo_exp import __version__

_RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", re.MULTILINE)
_KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_changelog_s_newest_release_is_this_version(root: Path) -> None:
    text = (root / "CHANGELOG.md").read_text()
    releases = _RELEASE.findall(text)
    assert releases[0][0] == __version__
    # Newest first, each once, each with a date.
    numbers = [tuple(map(int, version.split("."))) for version, _ in releases]
    assert numbers == sorted(set(numbers), reverse=True)
    dates = [datetime.date.fromisoformat(day) for _, day in releases]
    assert dates == sorted(dates, reverse=True)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[0] == "[Unreleased]"


def test_a_release_of_the_changelog_has_each_kind_of_change_once(root: Path) -> None:
    for release in (root / "CHANGELOG.md").read_text().split("\n## ")[1:]:
        kinds = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert len(kinds) == len(set(kinds))
        assert set(kinds) <= _KINDS


def test_the_wheel_holds_every_yaml_and_every_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools")
    said: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    monkeypatch.chdir(root)
    runpy.run_path(str(root / "setup.py"))
    for file in [*(root / "conf").rglob("*.yaml"), *(root / "sweeps").rglob("*.yaml")]:
        package = ".".join(("octo_exp", *file.parent.relative_to(root).parts))
        assert package in said["packages"]
        assert root / said["package_dir"][package] == file.parent
        assert "*.yaml" in said["package_data"][package]
    rooms = {".".join(file.parent.relative_to(root).parts) for file in (root / "octo_exp").rglob("*.py")}
    assert rooms <= set(said["packages"])
    assert "py.typed" in said["package_data"]["octo_exp"]
