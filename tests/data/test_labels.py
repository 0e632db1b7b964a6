"""Label columns as other people type them, and tables that lie beside copies of themselves."""

import json
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from octo_exp.base.errors import UserError
from octo_exp.data import hub
from octo_exp.data.content import content_of
from octo_exp.data.sources import load_split

NUMBERS = [2, 0, 1, 1]
TEXTS = ["cat", "ant", "bee", "bee"]


@pytest.fixture
def table(files, tmp_path: Path):
    """Writes toy/NAME.parquet with four images and a column of labels."""

    def write(labels: Any, name: str = "train", **metadata: str) -> Path:
        column = labels if isinstance(labels, pa.Array | pa.ChunkedArray) else pa.array(labels)
        images = [files.encode(picture) for picture in files.pictures(len(column))]
        path = tmp_path / f"toy/{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        whole = pa.table({"image": pa.array(images, pa.binary()), "label": column})
        pq.write_table(whole.replace_schema_metadata(metadata or None), path, row_group_size=2)
        return path

    return write


def lists(values: list[Any]) -> list[list[Any]]:
    return [[value] for value in values]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(NUMBERS, pa.uint64()),
        pa.array([2.0, 0.0, 1.0, 1.0]),
        pa.array(NUMBERS, pa.float16()),
        pa.array([Decimal(n) for n in NUMBERS], pa.decimal128(5, 2)),
        pa.array(lists(NUMBERS)),
        pa.array(lists(NUMBERS), pa.list_(pa.int8(), 1)),
        pa.array(lists(NUMBERS), pa.large_list(pa.float32())),
        pa.array(lists(lists(NUMBERS))),
        pa.array(NUMBERS).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_whole_numbers_of_any_type_are_classes(spec, table, column: pa.Array) -> None:
    table(column)
    split = load_split(spec(), "train")
    assert split.labels.tolist() == NUMBERS
    assert split.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS).dictionary_encode(),
        pa.chunked_array([pa.array(TEXTS[:2]).dictionary_encode(), pa.array(TEXTS[2:]).dictionary_encode()]),
        pa.array(lists(TEXTS)),
        # A category that no row has, as pandas leaves it behind.
        pa.DictionaryArray.from_arrays(pa.array([2, 1, 0, 0]), pa.array(["bee", "ant", "cat", "dog"])),
    ],
    ids=lambda column: str(column.type)[:12],
)
def test_texts_are_classes_by_name(spec, table, column: Any) -> None:
    table(column)
    table(["bee", "cat"], "test")
    train, test = load_split(spec(), "train"), load_split(spec(), "test")
    assert train.labels.tolist() == NUMBERS
    assert test.labels.tolist() == [1, 2]
    assert train.class_names == test.class_names == ("ant", "bee", "cat")


def test_texts_are_numbered_as_the_schema_names_them(spec, table) -> None:
    features = {"label": {"names": ["cat", "bee", "ant"]}}
    table(TEXTS, huggingface=json.dumps({"info": {"features": features}}))
    split = load_split(spec(), "train")
    assert split.labels.tolist() == [0, 2, 1, 1]
    assert split.class_names == ("cat", "bee", "ant")


def test_numbers_of_texts_depend_on_the_class_split(spec, table) -> None:
    table(TEXTS)
    table(["bee", "cat"], "test")
    before = content_of(spec(), "test")
    assert load_split(spec(), "test").labels.tolist() == [1, 2]
    table(["zoo", "bee", "cat"])
    assert load_split(spec(), "test").labels.tolist() == [0, 1]
    assert content_of(spec(), "test") != before


def test_booleans_are_two_classes(spec, table) -> None:
    table([True, False, False, True])
    split = load_split(spec(classes=2), "train")
    assert split.labels.tolist() == [1, 0, 0, 1]
    assert split.class_names == ("False", "True")
    with pytest.raises(UserError, match=r"has 2 classes \(False, True\), data\.classes says 3"):
        load_split(spec(), "train")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, None, 1], r", row 1: there is no label in column label: give it one"),
        ([None, None], r", row 0: there is no label in column label"),
        ([[0], [None]], r", row 1: there is no label"),
        ([0.0, 1.5, 2.5], r", row 1: label 1\.5 is no whole number \(2 such rows\)"),
        ([0.0, float("nan")], r", row 1: label nan is no whole number \(1 such rows\)"),
        ([0.0, 1e300], r", row 1: label 1e\+300 is no whole number"),
        ([[0], [1, 2], []], r", row 1: column label holds 2 labels \(2 such rows\): an image has one class"),
        ([b"a", b"b"], r": label column label holds binary: it must hold one class in every row, a number or a name"),
        ([{"a": 1}], r": label column label holds struct"),
        (["ant", "bee"], r", column label has 2 classes \(ant, bee\), data\.classes says 3"),
        (pa.array([0, 2**64 - 1], pa.uint64()), r", row 1: label 18446744073709551615 is outside \[0, 3\)"),
    ],
)
def test_labels_that_are_no_class_are_named(spec, table, labels: Any, said: str) -> None:
    path = table(labels)
    with pytest.raises(UserError, match=re.escape(str(path)) + said):
        load_split(spec(), "train")


def test_a_text_that_the_class_split_lacks_is_named(spec, table) -> None:
    table(TEXTS)
    path = table(["bee", "d\nog"], "test")
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, row 1: the train split has no class d\\nog"):
        load_split(spec(), "test")


@pytest.mark.parametrize("column", ["text", "boolean", "list"])
def test_the_hub_reads_labels_alike(files, spec, monkeypatch, column: str) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    labels, feature, names, numbers = {
        "text": (TEXTS, Value("string"), ("ant", "bee", "cat"), NUMBERS),
        "boolean": ([True, False, True, True], Value("bool"), ("False", "True"), [1, 0, 1, 1]),
        "list": (lists(NUMBERS), List(ClassLabel(names=["x", "y", "z"])), ("x", "y", "z"), NUMBERS),
    }[column]
    rows = {"image": [{"bytes": files.encode(p), "path": None} for p in files.pictures(4)], "label": labels}
    content = Dataset.from_dict(rows, features=Features({"image": Image(), "label": feature}))
    monkeypatch.setattr(hub, "_probe", lambda name: None)
    monkeypatch.setattr(hub, "_load", lambda name: {"train": content, "test": content.select([3])})
    chosen = spec(hub="owner/toy", classes=len(names))
    split, test = load_split(chosen, "train"), load_split(chosen, "test")
    assert (split.labels.tolist(), split.class_names) == (numbers, names)
    assert test.labels.tolist() == numbers[3:]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "train (1)"),
        ("train", "train - Kopie"),
        ("train", "train_1"),
        ("train_0", "train_1", "train_1 (1)"),
        ("train_0", "train_1", "train_0 copy"),
        ("train-00000-of-00002", "train-00001-of-00002", "train-00001-of-00002 (1)"),
        ("train-00000-of-00001-0badc0de", "train-00000-of-00001-deadbeef"),
        ("train-00000-of-00001", "train"),
    ],
)
def test_a_second_copy_of_a_shard_is_refused(spec, table, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        table([i % 3, 0, 1, 2], name)
    with pytest.raises(UserError, match=r"set toy: .*train split \(train.*, train.*\): keep one"):
        load_split(spec(), "train")


def test_the_same_bytes_under_another_name_are_a_copy(spec, table) -> None:
    table(NUMBERS, "train_a")
    table(NUMBERS, "train_b")
    with pytest.raises(UserError, match=r"set toy: .*train split \(train_a\.parquet, train_b\.parquet\)"):
        load_split(spec(), "train")


@pytest.mark.parametrize(
    "names",
    [
        ("train (1)",),
        ("train_0", "train_1"),
        ("train-a", "train-b"),
        ("train-00000-of-00002-0badc0de", "train-00001-of-00002-deadbeef"),
    ],
)
def test_shards_of_other_names_are_joined(spec, table, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        table([i, i, i], name)
    assert load_split(spec(), "train").labels.tolist() == [i for i in range(len(names)) for _ in range(3)]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_shard_that_is_no_file_is_named(spec, table, tmp_path: Path, kind: str) -> None:
    path = table(NUMBERS).with_name("test.parquet")
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("nowhere")}[kind]()
    for read in (load_split, content_of):
        with pytest.raises(UserError, match=rf"{re.escape(str(path))} is no file"):
            read(spec(), "test")
