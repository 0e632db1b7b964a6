import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from octo_exp.base.errors import UserError
from octo_exp.data import hub
from octo_exp.data.sources import load_split


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub that answers; `splits` is what it gives, `asked` what was asked of it."""
    state = SimpleNamespace(splits={}, asked=[])

    def load(name: str) -> dict:
        state.asked.append(name)
        return state.splits

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "_probe", lambda name: None)
    monkeypatch.setattr(hub, "_load", load)
    return state


def dataset(files, pictures, labels, *, column: str = "image"):
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({column: Image(), "label": ClassLabel(names=["a", "b", "c"])})
    rows = {column: [{"bytes": files.encode(p), "path": None} for p in pictures], "label": labels}
    return Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("column", ["image", "img"])
def test_hub_split(files, spec, remote: SimpleNamespace, column: str) -> None:
    pictures = files.pictures(4)
    remote.splits = {"train": dataset(files, pictures, [2, 0, 1, 1], column=column)}
    chosen = spec(hub="owner/toy", image_columns=("image", "img"))
    split = load_split(chosen, "train")
    assert split.images.squeeze(1).tolist() == [p.tolist() for p in pictures]
    assert split.labels.tolist() == [2, 0, 1, 1]
    assert split.class_names == ("a", "b", "c")
    # Downloaded once, it needs no network again.
    assert load_split(chosen, "train").labels.tolist() == [2, 0, 1, 1]
    assert remote.asked == ["owner/toy"]


def test_local_folder_goes_before_the_hub(spec, toy: Path, remote: SimpleNamespace) -> None:
    assert len(load_split(spec(hub="owner/toy"), "train").labels) == 24
    assert remote.asked == []


def test_hub_mistakes(files, spec, remote: SimpleNamespace) -> None:
    remote.splits = {"train": dataset(files, files.pictures(2), [0, -1]), "validation": None}
    with pytest.raises(UserError, match=r"hub data set owner/toy has no split test, only train, validation"):
        load_split(spec(hub="owner/toy"), "test")
    with pytest.raises(UserError, match=r"hub data set owner/toy, split train, row 1: label -1 is outside \[0, 3\)"):
        load_split(spec(hub="owner/toy"), "train")
    with pytest.raises(UserError, match=r"split train has no column img: set data\.image_column= to one of image, la"):
        load_split(spec(hub="owner/toy", image_columns=("img",)), "train")
    with pytest.raises(UserError, match=r"data\.source=hub needs data\.hub="):
        load_split(spec(kind="hub"), "train")
    remote.splits = {"train": dataset(files, [], [])}
    with pytest.raises(UserError, match=r"split train is empty"):
        load_split(spec(hub="owner/toy"), "train")


def test_loading_is_quiet(files, spec, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    splits = {"train": dataset(files, files.pictures(3), [0, 1, 2])}
    monkeypatch.setattr(hub, "_probe", lambda name: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits if name == "owner/toy" else None)
    assert load_split(spec(hub="owner/toy"), "train").labels.tolist() == [0, 1, 2]
    assert datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_no_network_answers_with_the_remedy(spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("[Errno -2] Name or service not known\nsecond line")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(UserError) as caught:
        load_split(spec(hub="owner/toy"), "train")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"no folder {tmp_path / 'toy'}",
        "owner/toy",
        "Name or service",
        "OCTO_DATA_DIR",
        "data.root=",
        "network",
    ):
        assert part in message


def test_a_hub_that_hangs_is_given_up(spec, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    released = threading.Event()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: released.wait(30))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 0\.2 s"):
        load_split(spec(hub="owner/toy"), "train")
    assert time.monotonic() - start < 5
    released.set()


def test_offline_switch_asks_the_hugging_face_cache_alone(spec, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(name: str) -> str:
        raise AssertionError("the network was asked")

    def absent(name: str) -> None:
        raise FileNotFoundError("not in the cache")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_probe", never)
    monkeypatch.setattr(hub, "_load", absent)
    with pytest.raises(UserError, match=r"does not give owner/toy \(FileNotFoundError: not in the cache\)"):
        load_split(spec(hub="owner/toy"), "train")
