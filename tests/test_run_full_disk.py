"""A run on a disk that is too small: one line, nothing torn, the earlier files stay. Needs root, for a small tmpfs."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.runs import checkpoint
from octo_exp.runs.sweep.summary import main as summary
from tests.run_helpers import SMALL, go

INT8 = (*SMALL, "quant=int8", "callbacks.last_checkpoint.every_n_train_steps=1")
pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable]:
    @contextmanager
    def of_size(size: int) -> Iterator[Path]:
        place = tmp_path / "disk"
        place.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("no small disk can be mounted here: that needs root")
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)

    return of_size


@pytest.fixture(scope="module")
def checkpoint_bytes(tmp_path_factory) -> int:
    folder = tmp_path_factory.mktemp("measured")
    go(folder, *INT8)
    return (folder / "checkpoints/last.ckpt").stat().st_size


def check_files(folder: Path) -> None:
    """Whatever is there is whole."""
    for path in folder.rglob("*.ckpt"):
        checkpoint.read(path, "ckpt")
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    assert not list(folder.rglob("*.partial"))


def failure_of(folder: Path) -> str | None:
    try:
        go(folder, *INT8)
    except UserError as error:
        return str(error)
    return None


def test_at_each_of_twenty_sizes_a_run_is_complete_or_one_line(disk, checkpoint_bytes, capsys):
    complete = 0
    for size in range(20):
        with disk(50_000 + size * (3_000_000 - 50_000) // 19) as place:
            (place / "0").mkdir()
            (place / "0" / "results.json").write_text('{"seed": 7, "model": "earlier", "test/acc": 0.5}')
            failure = failure_of(place / "1")
            complete += failure is None
            assert failure is None or ("No space left on device" in failure and "\n" not in failure)
            check_files(place)
            capsys.readouterr()
            summary([str(place)])
            assert "earlier" in capsys.readouterr().out
    assert 0 < complete < 20


def test_room_for_one_and_a_half_checkpoints_keeps_the_first(disk, checkpoint_bytes):
    with disk(int(1.5 * checkpoint_bytes) + 60_000) as place:
        with pytest.raises(UserError, match="No space left on device"):
            go(place / "run", *INT8, "~callbacks.checkpoint")
        content = checkpoint.read(place / "run/checkpoints/last.ckpt", "ckpt")
        assert content["global_step"] >= 1
        assert all(torch.isfinite(value).all() for value in checkpoint.net_of(content).values())


def test_room_for_three_and_a_half_keeps_the_best_and_the_last(disk, checkpoint_bytes):
    with disk(int(3.5 * checkpoint_bytes) + 200_000) as place:
        go(place / "run", *INT8)
        check_files(place)
        assert sorted(path.name for path in (place / "run/checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
