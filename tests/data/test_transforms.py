import numpy as np
import pytest
import torch
from PIL import Image

from octo_exp.base.errors import UserError
from octo_exp.data.transforms import center_crop, convert_channels, fit_images, match_channels, normalize


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width", "top", "left"), [(28, 28, 2, 2), (27, 30, 2, 1), (32, 1, 0, 15)])
def test_pad_centers_on_black(height: int, width: int, top: int, left: int) -> None:
    images = noise(3, 2, height, width)
    padded = fit_images(images, size=32, fit="pad")
    expected = torch.zeros(3, 2, 32, 32, dtype=torch.uint8)
    expected[:, :, top : top + height, left : left + width] = images
    assert torch.equal(padded, expected)


def test_pad_refuses_larger_images() -> None:
    with pytest.raises(UserError, match=r"data\.fit=pad cannot bring 28x33 images to 32x32.*data\.fit=resize"):
        fit_images(noise(1, 1, 28, 33), size=32, fit="pad")


@pytest.mark.parametrize("fit", ["pad", "resize"])
def test_right_size_is_left_alone(fit: str) -> None:
    images = noise(3, 1, 16, 16)
    assert fit_images(images, size=16, fit=fit) is images


@pytest.mark.parametrize(("native", "size"), [(8, 32), (32, 28), (112, 32), (7, 63)])
def test_resize_agrees_with_pil(native: int, size: int) -> None:
    images = noise(5, 3, native, native)
    resized = fit_images(images, size=size, fit="resize")
    assert resized.shape == (5, 3, size, size)
    assert resized.dtype == torch.uint8
    for image, result in zip(images, resized, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        difference = result.permute(1, 2, 0).int() - torch.from_numpy(np.array(picture)).int()
        # PIL rounds after each of its two passes, by fixed-point weights.
        assert difference.abs().max() <= 1


def test_resize_crops_the_long_side_about_its_center() -> None:
    images = torch.zeros(1, 1, 4, 12, dtype=torch.uint8)
    images[..., 4:8] = 200
    assert torch.equal(fit_images(images, size=4, fit="resize"), torch.full((1, 1, 4, 4), 200, dtype=torch.uint8))
    tall = images.transpose(2, 3)
    assert fit_images(tall, size=2, fit="resize").shape == (1, 1, 2, 2)


def test_resize_works_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(7, 3, 8, 8)
    whole, gray = fit_images(images, size=6, fit="resize"), convert_channels(images, 1)
    monkeypatch.setattr("octo_exp.data.transforms._CHUNK", 3)
    assert torch.equal(fit_images(images, size=6, fit="resize"), whole)
    assert torch.equal(convert_channels(images, 1), gray)


@pytest.mark.parametrize(("native", "size"), [((8, 20), 7), ((20, 8), 16), ((3, 5), 3)])
def test_stretch_scales_both_sides(native: tuple[int, int], size: int) -> None:
    images = noise(3, 3, *native)
    for image, result in zip(images, fit_images(images, size=size, fit="stretch"), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert (result.permute(1, 2, 0).int() - torch.from_numpy(np.array(picture)).int()).abs().max() <= 1


# An odd pixel: 2.5 and 1.5 round to 2, 0.5 to 0.
@pytest.mark.parametrize(
    ("height", "width", "size", "top", "left"), [(12, 10, 7, 2, 2), (7, 8, 7, 0, 0), (1, 1, 1, 0, 0)]
)
def test_center_crop(height: int, width: int, size: int, top: int, left: int) -> None:
    images = noise(2, 3, height, width)
    assert torch.equal(center_crop(images, size), images[:, :, top : top + size, left : left + size])


def test_rgb_to_gray_equals_pil() -> None:
    images = noise(4, 3, 63, 63)
    expected = [np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in images]
    assert torch.equal(convert_channels(images, 1).squeeze(1), torch.from_numpy(np.stack(expected)))


def test_gray_to_rgb_repeats() -> None:
    images = noise(4, 1, 5, 5)
    converted = convert_channels(images, 3)
    assert converted.shape == (4, 3, 5, 5)
    assert all(torch.equal(converted[:, i], images[:, 0]) for i in range(3))
    assert convert_channels(images, 1) is images


def test_statistics_follow_the_channels() -> None:
    assert match_channels([0.25], 3) == (0.25, 0.25, 0.25)
    assert match_channels([0.125, 0.25, 0.375], 1) == (0.25,)
    assert match_channels([0.125, 0.25, 0.375], 3) == (0.125, 0.25, 0.375)


def test_normalize() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalize(images, mean=torch.tensor([0.5, 0.2, 0.0]), std=torch.tensor([0.5, 1.0, 0.25]))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, 0.0, 4.0]), rtol=1e-6, atol=1e-7)
    assert images.flatten().tolist() == [0, 51, 255]
