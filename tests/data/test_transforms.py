import numpy as np
import pytest
import torch
from PIL import Image

from octo_exp.data.sampler import Stream, keyed_generator
from octo_exp.data.transforms import convert_channels, crop_flip, fit_images, match_channels, normalize
from octo_exp.errors import UserError


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


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("hflip", [False, True])
def test_crop_flip_equals_one_image_at_a_time(padding: int, hflip: bool) -> None:
    images = noise(32, 3, 7, 7)
    result = crop_flip(images, crop_padding=padding, hflip=hflip, generator=keyed_generator(Stream.AUGMENT, 0, 0, 0))
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    seen = set()
    for image, frame in zip(result, padded, strict=True):
        places = [
            (top, left, flip)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flip in ([False, True] if hflip else [False])
            if torch.equal(
                image,
                (lambda cut, flip: cut.flip(2) if flip else cut)(frame[:, top : top + 7, left : left + 7], flip),
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len({flip for _, _, flip in seen}) == 1 + hflip
    assert (len({(top, left) for top, left, _ in seen}) > 5) == (padding > 0)


def test_crop_reaches_every_offset() -> None:
    # One white pixel in the middle tells where the crop was taken.
    images = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 255
    result = crop_flip(images, crop_padding=2, hflip=False, generator=keyed_generator(Stream.AUGMENT, 3))
    counts = (result > 0).sum(dim=0).flatten()
    assert int(counts.sum()) == 4000
    # 160 expected in each of 25 places, standard deviation 12.4: five of them either way.
    assert counts.min() > 98
    assert counts.max() < 222


def test_flip_is_a_fair_coin() -> None:
    images = torch.arange(2, dtype=torch.uint8).repeat(2000, 1, 2, 1)
    result = crop_flip(images, crop_padding=0, hflip=True, generator=keyed_generator(Stream.AUGMENT, 4))
    # 1,000 of 2,000 expected, standard deviation 22.4.
    assert abs(int(result[:, 0, 0, 0].sum()) - 1000) < 112


def test_augmentation_repeats_with_its_key_and_not_with_another() -> None:
    images = noise(16, 1, 8, 8)

    def augment(*key: int) -> torch.Tensor:
        return crop_flip(images, crop_padding=2, hflip=True, generator=keyed_generator(Stream.AUGMENT, *key))

    assert torch.equal(augment(0, 1, 2), augment(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1)):
        assert not torch.equal(augment(0, 1, 2), augment(*other))
