"""The bar: on a terminal only, not before some seconds, and not once for each of many small items."""

import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from octo_exp.base import progress
from octo_exp.base.progress import with_progress
from octo_exp.data.decode import decode_images


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    """What a terminal gets, at a clock that goes on by 1/64 s a look."""
    monkeypatch.setenv("TERM", "xterm")
    text, clock = io.StringIO(), itertools.count()
    monkeypatch.setattr(progress, "Console", lambda stderr, markup: Console(file=text, force_terminal=True, width=80))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock) / 64))
    return text


@pytest.fixture
def updates(monkeypatch) -> list[int]:
    made: list[int] = []
    update = Progress.update

    def noted(self: Progress, task: int, *, completed: int, refresh: bool) -> None:
        made.append(completed)
        update(self, task, completed=completed, refresh=refresh)

    monkeypatch.setattr(Progress, "update", noted)
    return made


@pytest.mark.parametrize("count", [0, 1, 7, 191])
def test_what_is_soon_done_draws_nothing(screen, count):
    assert list(with_progress(range(count), "decoding")) == list(range(count))
    assert screen.getvalue() == ""


def test_what_takes_longer_has_a_bar_that_goes_again(screen, updates):
    assert list(with_progress(range(400), "decoding")) == list(range(400))
    assert "decoding" in screen.getvalue()
    # From 3 s on, each time that half a second is over; then the line is empty again.
    assert updates == list(range(192, 401, 32))
    assert screen.getvalue().endswith("\x1b[2K")


def test_what_has_no_length_has_a_bar_as_well(screen, updates):
    assert list(with_progress(iter(range(230)), "decoding")) == list(range(230))
    assert updates == [192, 224]


@pytest.mark.parametrize("terminal", [False, True])
def test_off_a_terminal_and_on_one_that_cannot_draw_there_is_no_bar(screen, monkeypatch, terminal):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(progress, "Console", lambda stderr, markup: Console(file=screen, force_terminal=terminal))
    assert list(with_progress(range(400), "decoding")) == list(range(400))
    assert screen.getvalue() == ""


def test_many_small_images_are_decoded_beside_a_bar(screen):
    file = io.BytesIO()
    Image.new("L", (7, 5), 9).save(file, "PNG")
    encoded = with_progress(iter([file.getvalue()] * 200), "decoding train", 200)
    images = list(decode_images(encoded, shape=(1, 5, 7), size=7, stretch=False, where=str))
    assert np.array_equal(images, np.full((200, 1, 5, 7), 9, dtype=np.uint8))
    # The share that is done is known.
    assert "%" in screen.getvalue()
    assert "decoding train" in screen.getvalue()


def test_a_loop_that_fails_takes_its_bar_away(screen, monkeypatch):
    stopped = []
    monkeypatch.setattr(Progress, "stop", lambda self: stopped.append(self.live.stop()))
    bar = with_progress(range(400), "decoding")
    for _ in itertools.islice(bar, 350):
        pass
    bar.close()
    assert len(stopped) == 1
