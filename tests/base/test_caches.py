"""Caches that several processes share."""

import json
import subprocess
import sys

from octo_exp.base.caches import add_json, cache_folder, read_json

ADD = (
    "import sys; from pathlib import Path; from octo_exp.base.caches import add_json\n"
    "for i in range(20): assert add_json(Path(sys.argv[1]), {f'{sys.argv[2]}-{i}': i})"
)


def test_entries_of_four_processes_at_once_all_stay(tmp_path):
    path = tmp_path / "cache" / "times.json"
    running = [subprocess.Popen([sys.executable, "-c", ADD, str(path), str(name)]) for name in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(json.loads(path.read_text())) == 80


def test_a_damaged_cache_is_made_anew(tmp_path, caplog):
    path = tmp_path / "times.json"
    path.write_text("{half")
    assert read_json(path) == {}
    assert add_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert "is made anew" in caplog.text


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert not add_json(tmp_path / "file" / "times.json", {"a": 1})
    assert not add_json(tmp_path / "file" / "times.json", {"a": 1})
    assert [record.getMessage() for record in caplog.records] == [
        f"nothing can be remembered in {tmp_path / 'file'} (File exists); "
        "set OCTO_CACHE_DIR to a folder that can be written"
    ]


def test_the_folder_is_the_users_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("OCTO_CACHE_DIR", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "octo_exp"
    monkeypatch.setenv("OCTO_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
