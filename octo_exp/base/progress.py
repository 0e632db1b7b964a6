"""A bar for what takes more than some seconds, on a terminal only."""

import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

# A bar for anything shorter would only flicker.
_SECONDS_BEFORE_BAR = 3.0
# Items may be many and small, and a bar takes 1 to 2 ms to draw.
_SECONDS_BETWEEN_DRAWINGS = 0.5


def with_progress(items: Iterable[Any], title: str, total: int | None = None) -> Iterator[Any]:
    """Pass the items on; on a terminal, a bar appears after some seconds.

    `total` counts the items where they have no length of their own.
    """
    console = Console(stderr=True, markup=False)
    if not console.is_interactive:
        yield from items
        return
    # Drawn here, not by a thread of rich's own, which would take time from what the items are for, or is being timed.
    bar = Progress(console=console, transient=True, auto_refresh=False)
    task = bar.add_task(escape(title), total=len(items) if isinstance(items, Sized) else total)
    due = time.monotonic() + _SECONDS_BEFORE_BAR
    try:
        for done, item in enumerate(items, start=1):
            yield item
            if (now := time.monotonic()) >= due:
                bar.start()
                bar.update(task, completed=done, refresh=True)
                due = now + _SECONDS_BETWEEN_DRAWINGS
    finally:
        bar.stop()
