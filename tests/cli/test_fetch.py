import hashlib
import sys

import pytest
from omegaconf import OmegaConf

from octo_exp.base.errors import UserError
from octo_exp.cli import fetch
from octo_exp.cli.entry import main
from octo_exp.graph.files.released import graph_file
from tests.configs import CONF


def octo(*words: str) -> int:
    return main(["fetch", *words])


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder with files under the published names, whose hashes are the known ones here."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name in fetch.SHA256:
        (folder / name).write_bytes(name.encode())
    monkeypatch.setattr(fetch, "SHA256", {name: hashlib.sha256(name.encode()).hexdigest() for name in fetch.SHA256})
    monkeypatch.setattr(fetch, "SOURCE", f"{folder.as_uri()}/")
    monkeypatch.setattr(sys, "argv", ["octo"])
    monkeypatch.setenv("OCTO_MCU_DIR", str(tmp_path / "place"))
    return folder


@pytest.mark.parametrize("network", [True, False])
def test_the_files_are_checked_and_placed(network, published, tmp_path, capsys):
    assert octo(*([] if network else [str(published)])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("SHA-256 as known" in line for line in lines)
    assert sorted(path.name for path in (tmp_path / "place").iterdir()) == sorted(fetch.SHA256)
    assert octo(str(tmp_path)) == 0
    assert all("there already" in line for line in capsys.readouterr().out.splitlines())


def test_another_file_replaces_nothing(published, tmp_path, capsys):
    name = "mcunet-5fps.pkl"
    (published / name).write_bytes(b"other")
    place = tmp_path / "place" / name
    place.parent.mkdir()
    place.write_bytes(b"mine")
    assert octo() == 1
    error = capsys.readouterr().err
    assert f"{name} is another file" in error
    assert error.count("\n") == 1
    assert place.read_bytes() == b"mine"


@pytest.mark.parametrize("words", [[], ["FOLDER"]])
def test_a_file_that_cannot_be_had_is_one_line(words, published, capsys):
    (published / "mbv2-w0.35.pkl").unlink()
    assert octo(*(word.replace("FOLDER", str(published)) for word in words)) == 1
    error = capsys.readouterr().err
    assert "mbv2-w0.35.pkl cannot be" in error
    assert error.count("\n") == 1


def test_elsewhere_the_command_says_how_to_find_them(published, tmp_path, capsys):
    assert octo(f"out={tmp_path / 'elsewhere'}") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"export OCTO_MCU_DIR={tmp_path / 'elsewhere'}"


def test_the_message_of_a_missing_file_names_the_command():
    for path in CONF.glob("model/*.yaml"):
        node = OmegaConf.load(path)
        if node.get("source"):
            assert str(node.source).rpartition("/")[2] in fetch.SHA256
    with pytest.raises(UserError, match=r"octo fetch places it"):
        graph_file(path="nowhere/mbv2-w0.35.pkl", source="x", image_size=128, pixels=None)
    with pytest.raises(UserError, match=r"give model\.path=<file>\.pkl"):
        graph_file(path="nowhere.pkl", source=None, image_size=128, pixels=None)
