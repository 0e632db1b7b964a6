"""Export of a run's int8 graph: verified, whole or not at all, with a manifest; read again it is the same network."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from octo_exp.cli.export import export as main
from octo_exp.data.transforms import normalize
from octo_exp.exports import subject as graph
from octo_exp.exports.formats import mcu
from octo_exp.exports.source import read_run
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.input import McuInput
from octo_exp.graph.parts import InputSpec
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.runs.run import run
from tests.configs import composed
from tests.graph.helpers import tiny_model
from tests.refusals import assert_names

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "microcontrollers.md"
SMALL = ("data=digits", "data.limit_train=120", "data.limit_test=60", "data.epochs=1", "logger=csv", "hw=[]")
PIXELS = "model.pixels={channels:3,mean:[.5,.5,.5],std:[0.00392156862745098,0.00392156862745098,0.00392156862745098]}"


def trained(folder: Path, *settings: str) -> Path:
    """A run of a small graph; its folder."""
    write_model(tiny_model(), folder / "tiny.pkl")
    graph = ("model=graph", f"model.path={folder / 'tiny.pkl'}", "model.image_size=16", f"++{PIXELS}", "quant=native")
    run(composed(*SMALL, *graph, *settings, save_dir=folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Path:
    settings = ("quant.head=quantized", "update=qas", "update.mode=strict_int8", "update.lr=0.001")
    return trained(tmp_path_factory.mktemp("strict"), *settings)


def test_a_run_in_strict_int8_is_exported_with_identical_logits(strict, capsys):
    assert main(["format=mcu", f"run={strict}"]) == 0
    shown = capsys.readouterr().out
    assert re.search("logits identical to run .* yes", shown)
    assert re.search("class of the run's .* (59|60) of 60", shown)
    path = strict / "export" / "run.pkl"
    content = json.loads((path.parent / "run.pkl.json").read_text())
    assert content["logits_identical_to_run"] is True
    assert content["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # One image: in integers a code may be the next one.
    assert content["accuracy"] == pytest.approx(content["accuracy_of_run"], abs=1.5 / 60)
    assert content["test_images"] == 60
    assert {p.name for p in path.parent.iterdir()} == {"run.pkl", "run.pkl.json"}
    # The export is the trained network, not the file it came from.
    assert any(
        not np.array_equal(a.weight, b.weight) for a, b in zip(read_model(path).convs, tiny_model().convs, strict=True)
    )
    # As a model it gives the run's logits in a run of its own.
    again = composed(
        *SMALL,
        "model=graph",
        f"model.path={path}",
        "model.image_size=16",
        f"++{PIXELS}",
        "quant=native",
        "train=false",
        save_dir=strict.parent / "again",
    )
    assert run(again)["test/acc"] == pytest.approx(content["accuracy_of_run"])


def test_a_float_head_is_quantised_and_said_to_be(tmp_path, capsys):
    folder = trained(tmp_path, "update=head_only", "update.lr=0.05")
    assert main(["format=mcu", f"run={folder}", f"out={tmp_path / 'out/net.pkl'}"]) == 0
    content = json.loads((tmp_path / "out" / "net.pkl.json").read_text())
    assert content["logits_identical_to_run"] is False
    assert content["same_class_as_run"] > 0.7
    shown = capsys.readouterr().out
    assert re.search("logits identical to run .* no", shown)
    assert f"{round(60 * content['same_class_as_run'])} of 60" in shown
    assert read_model(tmp_path / "out/net.pkl").classifier.out_channels == 10


def test_a_file_that_does_not_verify_leaves_nothing_and_keeps_what_was_there(strict, tmp_path, monkeypatch, capsys):
    target = tmp_path / "net.pkl"
    target.write_text("before")
    # Of an earlier export, which may be replaced.
    (tmp_path / "net.pkl.json").write_text("before")
    shaken = tiny_model(seed=9)
    monkeypatch.setattr(mcu, "read_model", lambda path: shaken)
    monkeypatch.setattr(
        McuNet, "with_classifier", classmethod(lambda cls, spec, *, mode: _ten_classes(cls, spec, mode))
    )
    assert main(["format=mcu", f"run={strict}", f"out={target}"]) == 1
    assert "does not verify" in capsys.readouterr().err
    assert target.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pkl", "net.pkl.json"]
    assert (tmp_path / "net.pkl.json").read_text() == "before"


def _ten_classes(cls, spec, mode):
    head = "original" if spec.classifier.out_channels == 10 else "quantized"
    return cls(spec, num_classes=10, head=head, mode=mode)


def test_logits_that_are_not_the_runs_are_refused(strict, tmp_path, monkeypatch, capsys):
    spec_of = graph.spec_of

    def shaken(net, *, logits_absmax):
        with torch.no_grad():
            net.head.bias += 1e6
        spec = spec_of(net, logits_absmax=logits_absmax)
        with torch.no_grad():
            net.head.bias -= 1e6
        return spec

    monkeypatch.setattr(graph, "spec_of", shaken)
    assert main(["format=mcu", f"run={strict}", f"out={tmp_path / 'net.pkl'}"]) == 1
    assert "its logits are not the run's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_int8_are_counted_and_said(strict, tmp_path, capsys, caplog):
    folder = tmp_path / "run"
    shutil.copytree(strict, folder)
    assert main(["format=mcu", f"run={folder}", f"out={tmp_path / 'within.pkl'}"]) == 0
    assert json.loads((tmp_path / "within.pkl.json").read_text())["clamped_weights"] == 0
    assert caplog.messages == []
    path = folder / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    weights = [value for key, value in checkpoint["state_dict"].items() if key.endswith("weight")]
    # 127.4 rounds to a code; the others do not.
    weights[1].view(-1)[:4] = torch.tensor([127.4, 127.6, -128.0, 300.0])
    weights[-1].view(-1)[0] = -150
    torch.save(checkpoint, path)
    assert main(["format=mcu", f"run={folder}", f"out={tmp_path / 'beyond.pkl'}"]) == 0
    assert json.loads((tmp_path / "beyond.pkl.json").read_text())["clamped_weights"] == 4
    (message,) = caplog.messages
    assert message.startswith("4 weights lie beyond int8 and become -127 or 127: the graph is not quite what was")
    assert read_model(tmp_path / "beyond.pkl").convs[1].weight.reshape(-1)[:4].tolist() == [127, 127, -127, 127]


def test_what_counts_as_integers(strict):
    net = read_run(str(strict)).net
    assert mcu.consists_of_integers(net)
    with torch.no_grad():
        net.convs[1].weight.view(-1)[0] = 128
    assert not mcu.consists_of_integers(net)
    with torch.no_grad():
        net.convs[1].weight.view(-1)[0] = 0.5
    assert not mcu.consists_of_integers(net)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "format= is missing"),
        (["format=mcu"], 2, "run= is missing"),
        (["format=tar", "run=x"], 2, "format=tar is unknown; choose one of c, mcu, onnx, report, text"),
        (["format=mcu", "run=x", "speed=9"], 2, "'speed=9' is not understood"),
        (["format=mcu", "run=/nowhere"], 2, "/nowhere ... config.yaml"),
        # Before the run is read.
        (["format=mcu", "run=some/vgg", "out=folder"], 2, "is a folder; give a file, such as out=folder/vgg.pkl"),
        (["format=mcu", "run=some/vgg", "out=new/"], 2, "is a folder; give a file, such as out=new/vgg.pkl"),
        (["format=mcu", "run=/nowhere", "out=file/x.pkl"], 2, "file is no folder; give another out=FILE"),
        (["format=mcu", "run=/nowhere", "out=file/x/y.pkl"], 2, "file is no folder; give another out=FILE"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert_names(error, words)


def test_what_cannot_be_written_is_one_line(strict, tmp_path, capsys):
    (tmp_path / "net.pkl.json").mkdir()
    assert main(["format=mcu", f"run={strict}", f"out={tmp_path / 'net.pkl'}"]) == 2
    error = capsys.readouterr().err
    assert_names(error, "net.pkl.json ... Is a directory; ... out=FILE")


def codes_of(p: np.ndarray, content: dict) -> np.ndarray:
    """Codes of pixels p [N, C, H, W] as docs/microcontrollers.md has it, by what a manifest says."""
    p = p.astype(np.float32)
    mean, std = (np.array(content[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    input_scale, input_zero = content["input_scale"], content["input_zero"]
    line = next(part for part in DOCUMENT.read_text().split("`") if part.startswith("codes = "))
    return eval(line.removeprefix("codes = "), {"np": np}, locals())


def test_codes_by_the_document_s_line_are_the_graph_s(strict):
    assert main(["format=mcu", f"run={strict}"]) == 0
    path = strict / "export" / "run.pkl"
    content = json.loads((path.parent / "run.pkl.json").read_text())
    data = read_run(str(strict)).datamodule
    pixels = data.test_dataloader().images
    expected = McuInput(read_model(path).input)(data.on_after_batch_transfer((pixels, None), 0)[0])
    assert torch.equal(torch.from_numpy(codes_of(pixels.numpy(), content)), expected.to(torch.int8))


@pytest.mark.parametrize("scale", [1.0, *(10 ** np.random.default_rng(0).uniform(-2.5, -1, 63)).tolist()])
@pytest.mark.parametrize("mean", [[0.485, 0.456, 0.406], [0.5] * 3])
def test_codes_of_every_pixel_value_at_any_scale(scale, mean):
    """A pixel's code depends on nothing else: 256 values of each channel are all that there is, ties among them."""
    published = mean[0] == 0.5 and scale == 1
    std = torch.tensor([1 / 255] * 3 if published else [0.229, 0.224, 0.225])
    zero = 0 if scale == 1 else -13
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    x = normalize(pixels, mean=torch.tensor(mean), std=std)
    expected = McuInput(InputSpec(scale=scale, zero=zero))(x).to(torch.int8)
    content = {"mean": torch.tensor(mean).tolist(), "std": std.tolist(), "input_scale": scale, "input_zero": zero}
    assert torch.equal(torch.from_numpy(codes_of(pixels.numpy(), content)), expected)


def test_a_run_that_was_no_graph_is_quantised_and_one_without_a_checkpoint_is_refused(strict, tmp_path, capsys):
    run(composed(*SMALL, "model=simplecnn", "quant=int8", save_dir=tmp_path / "int8"))
    assert main(["format=mcu", f"run={tmp_path / 'int8'}"]) == 0
    content = json.loads((tmp_path / "int8/export/int8.pkl.json").read_text())
    assert content["graph"] == "calibrated"
    assert content["same_class_as_run"] > 0.8
    capsys.readouterr()
    (tmp_path / "int8/checkpoints/last.ckpt").unlink()
    assert main(["format=mcu", f"run={tmp_path / 'int8'}"]) == 2
    assert "holds no checkpoints/last.ckpt" in capsys.readouterr().err
