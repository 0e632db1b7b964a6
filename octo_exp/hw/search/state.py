"""Where a search stands, in one file that is written whole or not at all."""

import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octo_exp.base.errors import UserError
from octo_exp.base.files import whole_file

State = dict[str, Any]


class Store:
    """Keeps the latest state of a search.

    Args:
        path: the file, which need not exist yet.
        every_s: seconds that pass at least between two writings by `offer`.
        facts: numbers and texts that are written beside every state.

    """

    def __init__(self, path: Path, *, every_s: float, facts: Mapping[str, Any]) -> None:
        self.path = path
        self._every_s = every_s
        self._facts = dict(facts)
        self._started = self._written = time.monotonic()
        self._before_s = 0.0

    @property
    def seconds(self) -> float:
        """Time since the search began, and what it had taken before the state that was loaded."""
        return self._before_s + time.monotonic() - self._started

    def begin(self) -> None:
        """Let the time of the search run from now on."""
        self._started = self._written = time.monotonic()

    def load(self) -> State | None:
        """Return the state that was saved and its facts, None where there is none; UserError for an unreadable file."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                state = {name: _plain(file[name]) for name in file.files}
            self._before_s = state["seconds"]
            return state
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} cannot be read ({error}): delete it to begin the search anew") from error

    def offer(self, state: Mapping[str, Any]) -> None:
        """Save, unless that was done a moment ago."""
        if time.monotonic() - self._written >= self._every_s:
            self.save(state)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write arrays, numbers and texts by name, whole or not at all; UserError where that cannot be."""
        with whole_file(self.path) as file:
            np.savez(file, **state, **self._facts, seconds=self.seconds)
        self._written = time.monotonic()


def _plain(array: Any) -> Any:
    return array.item() if array.ndim == 0 else array
