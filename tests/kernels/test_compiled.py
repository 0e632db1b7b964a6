"""Compiled loops where nothing can be kept, and where what was kept is damaged."""

import contextlib
import errno
import importlib.util
import os
import sys

import numba
import pytest
from numba.core.caching import IndexDataCacheFile

from octo_exp.base import caches, homes
from octo_exp.kernels.cpu import compiled

SOURCE = """
from octo_exp.kernels.cpu.compiled import njit

@njit(cache=True, error_model="numpy")
def double(x):
    return 2 * x
"""


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """The compiled loop of a module on the disk, as a process of its own would load it."""
    monkeypatch.setattr(caches, "_told", set())
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "package" / "own_loops.py"
    path.parent.mkdir()
    path.write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location("own_loops", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.double

    return load


@pytest.fixture
def read_only(tmp_path, loop, monkeypatch):
    """Neither the package's folder nor the user's cache nor the user's own choice can be written, by root either."""
    (tmp_path / "package" / "__pycache__").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/dev/null/chosen")


def test_where_nothing_can_be_written_the_cache_is_temporary(loop, read_only, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(homes, "temporary_folder", lambda: tmp_path / "temporary")
    assert [loop()(x) for x in (1, 2)] == [2, 4]
    assert {path.suffix for path in (tmp_path / "temporary").rglob("own_loops.*")} == {".nbi", ".nbc"}
    (record,) = caplog.records
    assert "compiled loops go to a temporary" in record.getMessage()
    assert "NUMBA_CACHE_DIR" in record.getMessage()


def test_without_a_temporary_folder_nothing_is_kept(loop, read_only, monkeypatch, caplog):
    monkeypatch.setattr(homes, "temporary_folder", lambda: None)
    assert [loop()(x) for x in (1, 2)] == [2, 4]
    (record,) = caplog.records
    assert "compiled loops are not kept" in record.getMessage()


def test_where_a_folder_can_be_written_the_choice_is_numbas(loop, tmp_path, monkeypatch, caplog):
    assert loop()(3) == 6
    assert len(list((tmp_path / "package" / "__pycache__").glob("own_loops.*.nbc"))) == 1
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "chosen"))
    assert loop()(3) == 6
    assert len(list((tmp_path / "chosen").rglob("own_loops.*.nbc"))) == 1
    assert not caplog.records


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"\xff" * 99])
def test_a_damaged_cache_is_made_anew(loop, tmp_path, caplog, suffix, damage):
    loop()(3)
    (path,) = (tmp_path / "package").rglob(f"*{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    assert loop()(3) == 6
    assert caplog.text.count("are damaged") == len(caplog.records) == 1
    again = loop()
    assert again(3) == 6
    assert sum(again.stats.cache_hits.values()) == 1
    assert len(caplog.records) == 1


def test_a_full_disk_costs_the_cache_alone(loop, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", full)
    assert [loop()(x) for x in (3, 4)] == [6, 8]
    (record,) = caplog.records
    assert "compiled loops cannot be kept in" in record.getMessage()
    assert "No space left on device" in record.getMessage()


def test_one_process_at_a_time_changes_the_index(loop, monkeypatch):
    inside, seen = [], []
    hold, save = compiled.hold, IndexDataCacheFile._save_index

    @contextlib.contextmanager
    def watched(folder, **options):
        with hold(folder, **options):
            inside.append(folder)
            yield
            inside.pop()

    monkeypatch.setattr(compiled, "hold", watched)
    monkeypatch.setattr(IndexDataCacheFile, "_save_index", lambda *args: (seen.append(list(inside)), save(*args)))
    double = loop()
    double(3)
    assert [[str(folder) for folder in held] for held in seen] == [[double._cache.cache_path]]


def test_a_loop_is_compiled_anew_where_what_it_may_call_has_changed(loop, monkeypatch, tmp_path):
    def misses():
        fresh = loop()
        assert fresh(2) == 4
        return sum(fresh.stats.cache_misses.values())

    assert [misses(), misses()] == [1, 0]
    monkeypatch.setattr(compiled, "_sources", lambda: "others")
    assert [misses(), misses()] == [1, 0]
    file = tmp_path / "package" / "callee.py"
    found = []
    for text in ("1", "2"):
        file.write_text(text)
        found.append(compiled.digest_of(file.parent))
    assert len(set(found)) == 2
