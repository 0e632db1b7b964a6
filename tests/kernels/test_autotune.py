import json
import logging

import pytest
import torch

from octo_exp.kernels.triton import autotune
from octo_exp.kernels.triton.autotune import TILES, BlockCache


class FakeTimer:
    """Gives each candidate a time by its place, and counts the launches."""

    def __init__(self, fastest: int) -> None:
        self.fastest, self.launches = fastest, 0

    def __call__(self, launch) -> float:
        self.launches += 1
        return 1.0 if launch() is TILES[self.fastest] else 2.0


def choose(cache: BlockCache, shape=(64, 7, 9), device="A", kernel="gemm"):
    return cache.choose(kernel, shape, device, TILES, lambda blocks: blocks)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "octo_exp" / "triton_blocks.json"


def test_the_fastest_is_timed_once_and_kept_in_the_file(path):
    timer = FakeTimer(2)
    cache = BlockCache(path, timer)
    assert [choose(cache), choose(cache)] == [TILES[2]] * 2
    assert timer.launches == len(TILES)
    written = path.read_text()
    path.unlink()
    assert choose(cache) is TILES[2]
    assert timer.launches == len(TILES)
    path.write_text(written)
    later = FakeTimer(0)
    assert choose(BlockCache(path, later)) is TILES[2]
    assert later.launches == 0
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("other", [{"shape": (64, 7, 8)}, {"device": "B"}, {"kernel": "conv"}])
def test_kernel_shape_and_device_are_the_key(path, other):
    choose(BlockCache(path, FakeTimer(2)))
    timer = FakeTimer(1)
    assert choose(BlockCache(path, timer), **other) is TILES[1]
    assert timer.launches == len(TILES)
    assert choose(BlockCache(path, FakeTimer(0))) is TILES[2]


def test_what_another_process_wrote_is_kept(path):
    first, second = BlockCache(path, FakeTimer(1)), BlockCache(path, FakeTimer(3))
    choose(first, (1, 1, 1))
    choose(second, (2, 2, 2))
    choose(first, (3, 3, 3))
    assert sorted(json.loads(path.read_text())) == ["A|gemm|1x1x1", "A|gemm|2x2x2", "A|gemm|3x3x3"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_corrupt_file_is_ignored_with_one_warning(path, caplog, text):
    path.parent.mkdir()
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert choose(BlockCache(path, FakeTimer(1))) is TILES[1]
    assert len(caplog.records) == 1
    assert choose(BlockCache(path, FakeTimer(0))) is TILES[1]


def test_a_choice_that_is_no_candidate_is_timed_again(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"A|gemm|64x7x9": [1, 2, 3, 4, 5, 6]}))
    assert choose(BlockCache(path, FakeTimer(4))) is TILES[4]


def test_a_folder_that_cannot_be_written_costs_a_warning_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert choose(BlockCache(tmp_path / "file" / "blocks.json", FakeTimer(1))) is TILES[1]
    assert caplog.text.count(f"{tmp_path / 'file'}") == caplog.text.count("set OCTO_CACHE_DIR") == 1


@pytest.mark.parametrize(("device", "interpreted"), [("cpu", "1"), ("cpu", "0"), ("cuda", "1")])
def test_without_a_device_the_first_candidate_is_taken_and_nothing_written(monkeypatch, tmp_path, device, interpreted):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OCTO_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    autotune._cache.cache_clear()

    def launch(blocks):
        raise AssertionError("timed")

    assert autotune.choose("gemm", (1,), torch.device(device), launch) is TILES[0]
    assert autotune._cache().path == tmp_path / "octo_exp" / "triton_blocks.json"
    assert not list(tmp_path.iterdir())
    autotune._cache.cache_clear()


def test_tiles_fit_the_smallest_shared_memory():
    assert all((tile.m + tile.n) * tile.k * tile.stages <= 48 * 1024 for tile in TILES)
    # The matrix units take tiles of 16 x 16 x 32 and up.
    assert all(min(tile.m, tile.n) >= 16 and tile.k >= 32 for tile in TILES)
