"""Whole or not there: what a reader sees while a file is written, when the disk is full and after a kill."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octo_exp.base.errors import UserError
from octo_exp.base.files import clean, strict_json, whole_file, write_json, write_text


def test_a_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_block_that_raises_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_line_and_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt cannot be written: No space left on device; make room there, or ask"):
        write_text(path, "new", remedy="ask")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_umask_gives_the_permissions(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_killed_process_leaves_what_the_next_start_removes(tmp_path):
    code = (
        "import os, signal, sys; from octo_exp.base.files import whole_file\n"
        "with whole_file(sys.argv[1]) as f: f.write(b'half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.bin")], check=False)
    (left,) = os.listdir(tmp_path)
    with whole_file(tmp_path / "b.bin"):
        # What is being written now stays.
        assert [path.name for path in clean(tmp_path)] == [left]
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == ["b.bin"]


def test_numbers_that_json_lacks_are_refused_by_key(tmp_path):
    with pytest.raises(UserError, match=r"a\.1\.b is nan"):
        write_json(tmp_path / "a.json", {"a": [1.0, {"b": float("nan")}]})
    with pytest.raises(UserError, match=r"^x is -inf"):
        strict_json({"x": float("-inf")})
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=rf"^{pipe} is .* a pipe, "):
        write_text(pipe, "x")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
