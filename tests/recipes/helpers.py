"""The recipes of CONTRIBUTING.md, and a copy of this tree with some of them laid in."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```\n", re.DOTALL)


def recipes() -> dict[str, dict[str, str]]:
    """Heading below "To add", without its article -> the files of the recipe: path -> content."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text[text.index("\n## To add\n") : text.index("\n## Rules\n")]
    _, *parts = re.split(r"^### An? ", section, flags=re.MULTILINE)
    return {part.partition("\n")[0]: dict(_BLOCK.findall(part)) for part in parts}


def tree(folder: Path, names: Iterable[str]) -> Path:
    """Copy what git knows of this tree into `folder`, with the files of these recipes; return the folder."""
    command = ["git", "ls-files", "-zco", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Compiled loops are known by the time of their file.
    loops = [path.relative_to(ROOT) for path in (ROOT / "octo_exp").rglob("__pycache__/*.nb?")]
    for name in (*filter(None, listed.split("\0")), *loops):
        source, target = ROOT / name, folder / name
        # One may be deleted, and not committed.
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    every = recipes()
    for name in names:
        for path, content in every[name].items():
            assert not (folder / path).exists(), f"{name}: {path} is there already"
            (folder / path).write_text(content)
    return folder
