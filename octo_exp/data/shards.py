"""Which parquet files are a split: its shards in order, each once."""

import filecmp
import re
from collections.abc import Sequence
from pathlib import Path

from octo_exp.base.caches import say_once
from octo_exp.base.errors import UserError
from octo_exp.data.set_spec import Spec, shown

# What browsers and file managers append to the name of a second copy: " (1)", " copy 2", " - Copie".
_COPY = re.compile(r"( ?\([^()]*\)|[ _-]+(copy|copie|kopie|copia)( ?\d+)?|~)$", re.IGNORECASE)
# The hub once put a hash behind the numbers.
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)(?:-[0-9a-f]+)?$")


def parquet_files(spec: Spec, folder: Path, split: str) -> list[Path]:
    """The split's shards in order; those that their names say are missing are named in the log.

    Raises:
        UserError: no such file; what is no file; several copies of the split or of a shard.

    """
    # `train.parquet`, `train-00000-of-00002.parquet`, `train_1.parquet`; not `training_notes.parquet`.
    files = sorted(path for path in folder.glob("*.parquet") if re.match(rf"{re.escape(split)}[^a-z]", path.name))
    if not files:
        raise UserError(
            f"data set {spec.name}: {folder.absolute()} has no {split}*.parquet: put the {split} split there "
            f"or name another folder with data.root= and data.folder="
        )
    for path in files:
        if not path.is_file():
            raise UserError(f"{shown(path)} is no file, or a link that leads nowhere: put a parquet file there")
    _refuse_copies(spec, folder, split, files)
    return files


def _refuse_copies(spec: Spec, folder: Path, split: str, files: Sequence[Path]) -> None:
    totals: set[str] = set()
    numbers: list[int] = []
    for path in files:
        numbered = _NUMBERED.search(path.stem)
        totals.add(numbered[2] if numbered else "")
        numbers.append(int(numbered[1]) if numbered else len(numbers))
    # The whole split in one file, beside others.
    whole = len(files) > 1 and any(path.stem == split for path in files)
    if whole or len(totals) > 1 or len(set(numbers)) < len(numbers) or _copy_of(files) is not None:
        raise UserError(
            f"data set {spec.name}: {folder.absolute()} mixes several copies of the {split} split "
            f"({', '.join(shown(path.name) for path in files)}): keep one, or number its parts "
            f"{split}-00000-of-{len(files):05d}.parquet, ..."
        )
    (total,) = totals
    missing = [f"{split}-{i:05d}-of-{total}.parquet" for i in range(int(total or 0)) if i not in numbers]
    if missing:
        text = f"{len(numbers)} of {int(total)} shards are there; without {', '.join(missing)}"
        say_once(f"{folder}: {text}", "%s: %s", folder, text)


def _copy_of(files: Sequence[Path]) -> Path | None:
    """A file that is another one's copy, by its name or by its bytes."""
    sizes: dict[int, list[Path]] = {}
    names = {path.stem for path in files}
    for path in files:
        if _COPY.sub("", path.stem) in names - {path.stem}:
            return path
        alike = sizes.setdefault(path.stat().st_size, [])
        # Shards that say which part they are need not be read for it.
        if not _NUMBERED.search(path.stem) and any(filecmp.cmp(path, other, shallow=False) for other in alike):
            return path
        alike.append(path)
    return None
