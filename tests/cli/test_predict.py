"""`octo predict`: anybody's images, prepared as the run's own test images are."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.cli.entry import main
from octo_exp.cli.predict import image_files, row_of
from octo_exp.data import ImageDataModule
from tests.configs import composed


def _digits(*overrides: str) -> ImageDataModule:
    datamodule: ImageDataModule = instantiate(composed("data=digits", *overrides).data)
    datamodule.setup()
    return datamodule


def _encoded(pixels: Tensor, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("model", ["simplecnn", "vgg11"])
def test_a_test_image_in_a_file_is_what_the_network_was_tested_with(model: str, mode: str) -> None:
    datamodule = _digits(f"model={model}")
    kept = datamodule._splits["test"][0][:5]
    expected, _ = datamodule.on_after_batch_transfer((kept, torch.zeros(5)), 0)
    for pixels, image in zip(kept, expected, strict=True):
        assert torch.equal(datamodule.prepared(_encoded(pixels[0], mode), "x")[0], image)


def test_a_row_names_file_class_and_probability(tmp_path: Path) -> None:
    datamodule = _digits()
    file = tmp_path / "x.png"
    file.write_bytes(_encoded(torch.zeros(8, 8, dtype=torch.uint8)))
    bias = torch.zeros(10)
    bias[7] = torch.log(torch.tensor(9.0))
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    net(torch.zeros(1, *datamodule.input_shape))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.copy_(bias)
    name, label, probability = row_of(SimpleNamespace(net=net, datamodule=datamodule), file)
    assert (name, label, round(probability, 6)) == (str(file), datamodule.class_names[7], 0.5)


def test_what_does_not_decode_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"x\.png: .* decode"):
        row_of(SimpleNamespace(net=None, datamodule=_digits()), file)


def test_images_are_found_at_any_depth_and_what_is_hidden_is_not(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/deep/c.jpg", "notes.txt", ".d.png", "@eaDir/e.png", "__MACOSX/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(file.relative_to(tmp_path)) for file in image_files(tmp_path)] == ["a/deep/c.jpg", "b.PNG"]
    assert list(image_files(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        list(image_files(tmp_path))


@pytest.mark.parametrize("out", ["", "missing/x.csv"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").touch()
    monkeypatch.setattr(sys, "argv", ["octo"])
    assert main(["predict", str(tmp_path / "x.png"), "run=nowhere", f"out={tmp_path / out}"]) == 2
    told = capsys.readouterr().err
    assert "give another out=FILE.csv" in told
    assert told.count("\n") == 1
