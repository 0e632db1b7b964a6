"""Random folders and tables of images: what `datasets` finds and decodes, or one line."""

import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from octo_exp.base.errors import UserError
from octo_exp.data.set_spec import Spec, Split
from octo_exp.data.sources import load_split

SIDE = 4
# What goes beyond `datasets`: suffixes that Pillow reads and its list lacks; folders of systems; films, which it lists.
MORE_SUFFIXES = {".avif"}
SYSTEM_FOLDERS = {"@eaDir"}
FILMS = {".mpg"}

FOLDERS = ["ant", "bee", "a b", "ünï", "v1.2", "__pycache__", ".ipynb_checkpoints", "@eaDir", os.fsdecode(b"\xff")]
STEMS = ["0", "1", "IMG 7", "photo.old", "._0", ".hidden", "__x", "ö", "Thumbs"]
SUFFIXES = [
    ".png",
    ".JPG",
    ".jpeg",
    ".jfif",
    ".gif",
    ".tif",
    ".webp",
    ".ppm",
    ".avif",
    ".txt",
    ".db",
    "",
    ".json",
    ".mpg",
]
KINDS = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]
MODES = ["L", "RGB", "P", "1", "LA", "RGBA", "CMYK"]


@dataclass(frozen=True)
class Picture:
    mode: str
    kind: str
    orientation: int | None
    damage: str | None
    seed: int

    def encoded(self) -> bytes:
        pixels = np.random.default_rng(self.seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        image, stream = Image.fromarray(pixels), io.BytesIO()
        image = image.convert("L").convert("F") if self.mode in ("I;16", "F") else image.convert(self.mode)
        image = image if self.mode != "I;16" else Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16))
        exif = image.getexif()
        if self.orientation is not None:
            exif[0x0112] = self.orientation
        try:
            image.save(stream, format=self.kind, exif=exif)
        except (OSError, KeyError, ValueError):
            # A format without this mode.
            stream = io.BytesIO()
            image.save(stream, format="TIFF", exif=exif)
        content = stream.getvalue()
        middle = len(content) // 2
        return {
            None: content,
            "half": content[:middle],
            "noise": b"\x00\x01" * 40,
            "empty": b"",
            "bit": content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :],
        }[self.damage]


pictures = st.builds(
    Picture,
    mode=st.sampled_from(MODES * 4 + ["I;16", "F"]),
    kind=st.sampled_from(KINDS),
    orientation=st.one_of(st.none(), st.integers(0, 9)),
    damage=st.sampled_from([*[None] * 60, "half", "noise", "empty", "bit"]),
    seed=st.integers(0, 99),
)
odd_things = st.sampled_from([*["file"] * 50, *["link"] * 5, "pipe", "nowhere", "loop", "folder"])
paths = st.tuples(
    st.lists(st.sampled_from(FOLDERS[:5] * 3 + FOLDERS), max_size=3, min_size=1),
    st.sampled_from(STEMS),
    st.sampled_from(SUFFIXES[:8] * 3 + SUFFIXES),
    st.integers(0, 49),
).map(lambda parts: Path(*parts[0], parts[1] + parts[2]) if parts[3] else Path("stray.png"))
sets = st.dictionaries(paths, st.tuples(pictures, odd_things), min_size=1, max_size=6)


def put(path: Path, content: bytes, thing: str, elsewhere: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if thing == "file":
        path.write_bytes(content)
    elif thing == "link":
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)
    elif thing == "pipe":
        os.mkfifo(path)
    elif thing == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if thing == "loop" else elsewhere.with_name("nowhere"))


def found_by_datasets(top: Path, cache: Path) -> dict[str, Any]:
    """Paths below a split -> what its feature takes, as `datasets`' own image folder gives them."""
    from datasets import DownloadManager
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    try:
        options = {"drop_labels": True, "drop_metadata": True}
        builder = ImageFolder(cache_dir=str(cache), data_files={"train": f"{top}/**"}, **options)
    except FileNotFoundError:
        return {}
    (generator,) = builder._split_generators(DownloadManager())
    examples = (example for _, example in builder._generate_examples(**generator.gen_kwargs))
    return {str(Path(row["image"]).relative_to(top)): {"path": row["image"], "bytes": None} for row in examples}


def decoded_by_datasets(value: dict[str, Any]) -> torch.Tensor | None:
    """[3, H, W] uint8; None where it fails or there are more than 8 bits a channel."""
    from datasets import Image as Feature

    try:
        image = Feature().decode_example(value)
    except Exception:
        return None
    if image.mode in ("F", "I", "I;16", "I;16B"):
        return None
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def spec_of(folder: Path, kind: str, classes: int) -> Spec:
    return Spec(
        name="random", kind=kind, folder=folder, hub=None, image_columns=("image",), label_column="label",
        shape=(3, None, None), classes=classes, size=SIDE, stretch=False, class_split="train",
    )  # fmt: skip


def split_or_line(spec: Spec) -> Split | str:
    try:
        return load_split(spec, "train")
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """A new folder for each example."""
    with tempfile.TemporaryDirectory() as top, warnings.catch_warnings():
        # Pillow warns of damage that both readers meet.
        warnings.simplefilter("ignore")
        monkeypatch.setenv("OCTO_CACHE_DIR", f"{top}/cache")
        yield lambda: Path(tempfile.mkdtemp(dir=top))


def check_folder(space: Callable[[], Path], content: dict[Path, tuple[Picture, str]]) -> bool:
    """Whether it was read; every other outcome is an error of one line that there is a reason for."""
    folder = space()
    top, elsewhere = folder / "train", folder / "elsewhere"
    for i, (path, (picture, thing)) in enumerate(content.items()):
        # Before: a file where a folder is asked for.
        if not any((top / parent).exists() and not (top / parent).is_dir() for parent in path.parents):
            put(top / path, picture.encoded(), thing, elsewhere.with_name(f"elsewhere{i}"))
    theirs = {
        path: value
        for path, value in found_by_datasets(top, folder / "cache").items()
        if Path(path).suffix not in FILMS and not SYSTEM_FOLDERS & set(Path(path).parts)
    }
    pixels = {path: decoded_by_datasets(value) for path, value in theirs.items()}
    classes = sorted({Path(path).parts[0] for path in theirs})
    more = [path for path in content if path.suffix in MORE_SUFFIXES]
    odd = any(thing not in ("file", "link") for _, thing in content.values())
    reason = odd or more or not theirs or None in pixels.values() or "stray.png" in theirs
    split = split_or_line(spec_of(folder, "imagefolder", max(len(classes), 1)))
    if isinstance(split, str):
        assert reason, split
        return False
    if not more:
        order = sorted(theirs, key=Path)
        assert split.class_names == tuple(classes)
        assert split.labels.tolist() == [classes.index(Path(path).parts[0]) for path in order]
        assert torch.equal(split.images, torch.stack([pixels[path] for path in order]))
    return True


rows = st.lists(pictures, min_size=1, max_size=6)
label_types = st.sampled_from(["int", "float", "text", "dictionary", "list"])


def check_table(space: Callable[[], Path], images: list[Picture], labels: str) -> bool:
    folder = space()
    numbers = [i % 3 for i in range(len(images))]
    texts = pa.array(["abc"[i] for i in numbers])
    column = {
        "int": pa.array(numbers),
        "float": pa.array([float(i) for i in numbers]),
        "text": texts,
        "dictionary": texts.dictionary_encode(),
        "list": pa.array([[i] for i in numbers]),
    }[labels]
    contents = [{"bytes": picture.encoded(), "path": None} for picture in images]
    pq.write_table(pa.table({"image": contents, "label": column}), folder / "train.parquet", row_group_size=2)
    pixels = [decoded_by_datasets(value) for value in contents]
    named = labels in ("text", "dictionary")
    split = split_or_line(spec_of(folder, "parquet", len(set(numbers)) if named else 3))
    if isinstance(split, str):
        assert any(image is None for image in pixels), split
        return False
    assert split.labels.tolist() == numbers
    assert torch.equal(split.images, torch.stack(pixels))
    return True


def run(count: int, check: Callable[..., bool], *drawn: Any) -> int:
    """How many of the random sets were read."""
    state = SimpleNamespace(read=0)

    @settings(max_examples=count)
    @given(st.tuples(*drawn))
    def all_of_them(example: tuple[Any, ...]) -> None:
        state.read += check(*example)

    all_of_them()
    return state.read


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_random_folders_are_read_as_datasets_reads_them(space, count: int) -> None:
    assert run(count, lambda content: check_folder(space, content), sets) > count // 5


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_random_tables_are_read_as_datasets_reads_them(space, count: int) -> None:
    assert run(count, lambda images, labels: check_table(space, images, labels), rows, label_types) > count // 5
