"""The blocks of a page of docs/, and its Python run as it stands."""

import re
from pathlib import Path

_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, content) of every block, in order."""
    return _BLOCK.findall(page.read_text())


def run_python(page: Path) -> None:
    """Run the Python blocks in order, as one program; what one raises is raised."""
    names: dict[str, object] = {"__name__": "page"}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), names)
