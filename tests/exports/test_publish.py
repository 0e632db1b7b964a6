"""Files appear whole or not at all."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.base.files import temporary_name
from octo_exp.cli import export as main_module
from octo_exp.exports import publish as module
from octo_exp.exports.formats import FORMATS, module_of
from octo_exp.exports.publish import publish
from octo_exp.exports.request import parse


def writes(**files: str) -> Any:
    """A writer of files, by their suffixes with _ for the dot; a folder for what has a slash."""

    def write(folder: Path, name: str) -> dict[str, str]:
        for suffix, text in files.items():
            path = folder / f"{name}{suffix.replace('_', '.')}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return {"text": "manifest"}

    return write


def fails(folder: Path, name: str) -> dict[str, str]:
    (folder / f"{name}.c").write_text("half")
    raise UserError("does not verify")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_files_and_the_manifest_take_their_place(tmp_path):
    content = publish(tmp_path / "new" / "net.c", ".c", writes(_c="code", _h="header"))
    assert content == {"text": "manifest"}
    assert names(tmp_path / "new") == ["net.c", "net.c.json", "net.h"]
    assert json.loads((tmp_path / "new/net.c.json").read_text()) == content


def test_what_fails_leaves_nothing_and_keeps_what_was_there(tmp_path):
    publish(tmp_path / "net.c", ".c", writes(_c="before", _h="before"))
    with pytest.raises(UserError, match="does not verify"):
        publish(tmp_path / "net.c", ".c", fails)
    assert names(tmp_path) == ["net.c", "net.c.json", "net.h"]
    assert (tmp_path / "net.c").read_text() == "before"


def folder_of(*files: str) -> Any:
    def write(folder: Path, name: str) -> dict[str, str]:
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_text(file)
        return {}

    return write


def test_a_folder_replaces_an_earlier_export_as_a_whole(tmp_path):
    publish(tmp_path / "net_text", "", folder_of("graph.txt", "weight/a.txt"))
    publish(tmp_path / "net_text", "", folder_of("graph.txt", "weight/b.txt"))
    assert names(tmp_path) == ["net_text", "net_text.json"]
    assert names(tmp_path / "net_text" / "weight") == ["b.txt"]


def test_a_folder_that_could_not_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    publish(tmp_path / "net_text", "", folder_of("a.txt"))
    replace = Path.replace

    def broken(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".unverified") and target == tmp_path / "net_text":
            raise OSError(28, "No space left on device", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(UserError, match="No space left on device; make room there, or give another out=FILE"):
        publish(tmp_path / "net_text", "", folder_of("b.txt"))
    assert names(tmp_path) == ["net_text", "net_text.json"]
    assert names(tmp_path / "net_text") == ["a.txt"]


def test_a_folder_that_is_no_export_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"mine is there already and is no export; give another out=FOLDER"):
        publish(tmp_path / "mine", "", folder_of("a.txt"))
    assert names(tmp_path / "mine") == ["thesis.tex"]


def test_a_folder_in_the_place_of_a_file_is_not_deleted(tmp_path):
    (tmp_path / "net.h").mkdir()
    (tmp_path / "net.h" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"net\.h cannot be written: Is a directory; give another out=FILE"):
        publish(tmp_path / "net.c", ".c", writes(_c="code", _h="header"))
    assert names(tmp_path) == ["net.h"]
    assert names(tmp_path / "net.h") == ["thesis.tex"]


@pytest.mark.parametrize("mine", ["net.c", "net.h"])
def test_a_file_that_is_no_export_is_not_replaced(tmp_path, mine):
    (tmp_path / mine).write_text("mine")
    with pytest.raises(UserError, match=f"{mine} is there .* no export; .*out=FILE"):
        publish(tmp_path / "net.c", ".c", writes(_c="code", _h="header"))
    assert names(tmp_path) == [mine]
    assert (tmp_path / mine).read_text() == "mine"


def test_a_link_to_a_folder_is_refused_and_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UserError, match=r"link is a link to a folder; give out=.*real, or another out=FOLDER"):
        publish(tmp_path / "link", "", folder_of("a.txt"))
    assert names(tmp_path) == ["link", "real"]
    assert (tmp_path / "link").is_symlink()


def test_a_folder_survives_an_interruption_between_old_and_new(tmp_path, monkeypatch):
    publish(tmp_path / "net_text", "", folder_of("a.txt"))
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".unverified") and target == tmp_path / "net_text":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "net_text", "", folder_of("b.txt"))
    assert names(tmp_path) == ["net_text", "net_text.json"]
    assert names(tmp_path / "net_text") == ["a.txt"]


def left_by(pid: int, name: str, end: str) -> str:
    return temporary_name(name, end).replace(f"~{os.getpid()}~", f"~{pid}~")


@pytest.fixture
def nobody() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_export_left_is_removed_and_what_a_living_one_has_stays(tmp_path, nobody):
    dead, alive = (left_by(pid, "unverified-net.c", ".partial") for pid in (nobody, os.getpid()))
    for name in (dead, alive, ".unverified-net.c-abc", ".unverified-net.c-old"):
        (tmp_path / name / "weight").mkdir(parents=True)
        (tmp_path / name / "weight" / "a.txt").touch()
    # Of earlier versions: nobody knows who writes there, until a day has passed.
    os.utime(tmp_path / ".unverified-net.c-old", (0, 0))
    publish(tmp_path / "net.c", ".c", writes(_c="code", _h="header"))
    assert names(tmp_path) == sorted([alive, ".unverified-net.c-abc", "net.c", "net.c.json", "net.h"])


@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_a_killed_export_took_away_is_put_back(tmp_path, nobody, moved):
    publish(tmp_path / "net_text", "", folder_of("a.txt"))
    keep = tmp_path / left_by(nobody, "old-net_text", ".old")
    keep.mkdir()
    (tmp_path / "net_text").rename(keep / "net_text")
    if moved:
        folder_of("new.txt")(tmp_path, "net_text")
    with pytest.raises(UserError, match="does not verify"):
        publish(tmp_path / "other.c", ".c", fails)
    assert names(tmp_path) == ["net_text", "net_text.json"]
    assert names(tmp_path / "net_text") == (["new.txt"] if moved else ["a.txt"])


def test_files_lie_on_the_disk_before_they_take_their_place(tmp_path, monkeypatch):
    publish(tmp_path / "net.c", ".c", writes(_c="before", _h="before"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        publish(tmp_path / "net.c", ".c", writes(_c="after", _h="after"))
    assert names(tmp_path) == ["net.c", "net.c.json", "net.h"]
    assert (tmp_path / "net.c").read_text() == (tmp_path / "net.h").read_text() == "before"


def test_of_two_exports_at_once_one_stands_whole(tmp_path, monkeypatch):
    move, moving = module._move, threading.Event()

    def slowly(source: Path, target: Path) -> None:
        move(source, target)
        moving.set()
        time.sleep(0.05)

    monkeypatch.setattr(module, "_move", slowly)
    both = [writes(_c=text, _h=text) for text in ("first", "second")]
    threads = [threading.Thread(target=publish, args=(tmp_path / "net.c", ".c", write)) for write in both]
    threads[0].start()
    assert moving.wait(timeout=60)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["net.c", "net.c.json", "net.h"]
    assert (tmp_path / "net.c").read_text() == (tmp_path / "net.h").read_text() == "second"


def test_a_drive_without_locks_is_written_to(tmp_path, monkeypatch):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    publish(tmp_path / "net.c", ".c", writes(_c="code", _h="header"))
    assert names(tmp_path) == ["net.c", "net.c.json", "net.h"]


def test_the_manifest_names_every_file(tmp_path):
    for name in ("a.c", "a.h"):
        (tmp_path / name).write_text(name)
    (tmp_path / "checkpoint").touch()
    (tmp_path / "graph.pkl").write_text("a.c")
    image = SimpleNamespace(scale=0.1, zero=3)
    part = SimpleNamespace(y_scale=0.2, y_zero=4, params=1, macs=2)
    spec = SimpleNamespace(input=image, classifier=part, params=10, macs=20, dead_channels=0)
    data = SimpleNamespace(mean=SimpleNamespace(tolist=lambda: [0.5]), std=SimpleNamespace(tolist=lambda: [0.2]))
    source = SimpleNamespace(
        folder=tmp_path,
        checkpoint=tmp_path / "checkpoint",
        net=nn.Identity(),
        datamodule=data,
        cfg=SimpleNamespace(data=SimpleNamespace(name="digits")),
    )
    graph = SimpleNamespace(source=source, spec=spec, origin="ptq")
    content = module.manifest(graph, "c", {"arena": 7}, tmp_path, "a.c")
    assert {"a.c", "a.h"} <= set(content["files"])
    assert content["files"]["a.h"]["bytes"] == 3
    assert content["sha256"] == content["files"]["a.c"]["sha256"]
    # Of the graph that the run has written; a graph that was made now has no file.
    assert content["graph_sha256"] == content["sha256"]
    graph.origin = "calibrated"
    assert module.manifest(graph, "c", {}, tmp_path, "a.c")["graph_sha256"] is None
    assert content["clamped_weights"] == 0
    assert (content["parameters"], content["macs"], content["arena"]) == (11, 22, 7)
    assert (content["input_scale"], content["logit_zero"], content["mean"]) == (0.1, 4, [0.5])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_what_a_format_needs(name):
    form = module_of(name)
    assert form.SUFFIX == "" or form.SUFFIX.startswith(".")
    assert callable(form.write)
    assert callable(getattr(form, "verify", form.write))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["format=c", "run=x", "hw=stm32"], "hw=stm32 is unknown; choose one of ascend310"),
        (["format=c", "run=x", "calibration.pictures=3"], "choose from images, activations, percentile"),
        (["format=c", "run=x", "calibration.images"], "is not understood"),
        (["format=onnx", "run=x", "hw=stm32f746"], "hw= means nothing to format=onnx; leave it out"),
        (["format=c", "run=x", "format=mcu"], "format= is given twice"),
        (["format=c", "run=x", "calibration.images=1", "calibration.images=2"], "calibration.images= is given twice"),
        (["format=c", "run=x", "calibration.images=-1"], "^calibration.images=-1: "),
        (["format=c", "run=x", "calibration.images=true"], "^calibration.images=True: "),
        (["format=c", "run=x", "calibration.activations=foo"], "^activations='foo' .*absmax"),
        (["format=c", "run=x", "calibration.symmetric=maybe"], "^calibration.symmetric=maybe: .*true or false"),
        (
            ["format=c", "run=x", "calibration.weights_per_channel=2"],
            "weights_per_channel=2: .*true or false",
        ),
        (["format=c", "run=x", "calibration.percentile=abc"], "calibration.percentile=abc: it must be a number"),
        (["format=c", "run=x", "calibration.percentile=0"], "^percentile=0 .*above 50 "),
    ],
)
def test_a_wrong_request_is_refused(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        parse(arguments)
    assert caught.value.exit_code == 2


def test_a_request_has_the_defaults_of_quant_ptq():
    request = parse(["format=c", "run=x", "hw=stm32f746", "calibration.images=9", "calibration.symmetric=true"])
    assert request.profile.name == "stm32f746"
    assert request.calibration["images"] == 9
    assert request.calibration["symmetric"] is True
    assert request.calibration["activations"] == "mse"
    assert request.destination(".c").name == "x.c"
    assert request.destination("").name == "x_c"


def test_a_wrong_command_line_is_refused_before_torch_is_imported():
    program = (
        "import sys; from octo_exp.cli.export import export as main; "
        "print(main(['format=x', 'run=x']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_an_interrupted_export_is_one_line(monkeypatch, capsys):
    def interrupted(request: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "export_run", interrupted)
    assert main_module.export(["format=c", "run=x"]) == 130
    assert capsys.readouterr().err == "interrupted: nothing was written\n"


def test_another_suffix_is_refused():
    request = parse(["format=c", "run=x", "out=net.bin"])
    with pytest.raises(UserError, match=r"format=c writes \.c; give out=net\.c"):
        request.destination(".c")
