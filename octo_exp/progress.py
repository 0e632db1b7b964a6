"""A bar for what takes more than some seconds, on a terminal only."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress

_SECONDS_BEFORE_BAR = 3.0


def with_progress(items: Iterable[Any], title: str) -> Iterator[Any]:
    """Pass the items on; on a terminal, a bar appears after some seconds."""
    console = Console(stderr=True)
    total = len(items) if hasattr(items, "__len__") else None
    start, bar = time.monotonic(), Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(title, total=total)
    try:
        for item in items:
            yield item
            bar.advance(task)
            if time.monotonic() - start > _SECONDS_BEFORE_BAR:
                bar.start()
    finally:
        bar.stop()
