import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from octo_exp.data.augment import Augmentation, ResizedCrop, augmentation, crop_flip, draw_boxes, jitter, resize_boxes
from octo_exp.data.sampler import Stream, keyed_generator
from octo_exp.data.transforms import center_crop

CROP = ResizedCrop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
SIZES = [1, 7, 16, 63, 65]


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def generator(*key: int) -> torch.Generator:
    return keyed_generator(Stream.AUGMENT, *key)


def to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy())


def from_pil(picture: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


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


@pytest.mark.parametrize("side", SIZES)
def test_boxes_lie_inside_the_image(side: int) -> None:
    boxes = draw_boxes(500, side, crop=CROP, generator=generator(0))
    assert boxes.shape == (500, 4)
    assert boxes.dtype == torch.int64
    start, length = boxes[:, :2], boxes[:, 2:]
    assert bool((start >= 0).all() and (length > 0).all() and (start + length <= side).all())


def test_boxes_follow_area_and_form() -> None:
    # A large side, so that whole pixels do not show.
    side, count = 1000, 20_000
    top, left, height, width = draw_boxes(count, side, crop=CROP, generator=generator(1)).double().unbind(dim=1)
    area, ratio = height * width / side**2, width / height
    assert float(area.min()) == pytest.approx(0.08, abs=2e-3)
    assert float(ratio.min()) > 0.75 - 0.01
    assert float(ratio.max()) < 4 / 3 + 0.01
    # Below an area of 3/4 every form fits: there area is uniform and the logarithm of the form is, about 0.
    small = area[area < 0.75]
    assert float(small.mean()) == pytest.approx((0.08 + 0.75) / 2, abs=5 * 0.67 / math.sqrt(12 * len(small)))
    logs = ratio[area < 0.75].log()
    assert float(logs.mean()) == pytest.approx(0, abs=5 * float(logs.std()) / math.sqrt(len(small)))
    assert float(logs.std()) == pytest.approx(math.log(16 / 9) / math.sqrt(12), rel=0.03)
    # The place is uniform in what is free.
    for start, length in ((top, height), (left, width)):
        free = side - length
        share = start[free > 100] / free[free > 100]
        assert float(share.mean()) == pytest.approx(0.5, abs=5 * 0.29 / math.sqrt(len(share)))
        assert float(share.max()) > 0.99


@pytest.mark.parametrize(
    ("ratio", "expected"), [((0.5, 0.8), (0, 4, 40, 32)), ((1.25, 3.0), (4, 0, 32, 40)), ((0.5, 2.0), (0, 0, 40, 40))]
)
def test_a_box_that_never_fits_becomes_the_largest_central_one(
    ratio: tuple[float, float], expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing of the whole area and another form than a square fits; where the range holds a square, no box is tried.
    crop = ResizedCrop(scale=(1.0, 1.0), ratio=ratio)
    if ratio[0] < 1 < ratio[1]:
        monkeypatch.setattr(torch, "rand", lambda *shape, dtype, generator: torch.zeros(*shape, dtype=dtype))
    boxes = draw_boxes(50, 40, crop=crop, generator=generator(2))
    assert boxes.tolist() == [list(expected)] * 50


def test_the_first_box_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # Area 1 with form 3/4 does not fit; the third draw is the first of a smaller area.
    draws = iter([[1.0, 1.0, 0.5, 0.25] + [0.0] * 6, [0.0] * 10, [0.999, 0.0]])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(next(draws), dtype=torch.float64)[:, None])
    area, form = 100**2 * (0.08 + 0.92 * 0.5), 3 / 4
    height, width = round(math.sqrt(area / form)), round(math.sqrt(area * form))
    boxes = draw_boxes(1, 100, crop=CROP, generator=generator(0))
    assert boxes.tolist() == [[math.floor(0.999 * (100 - height + 1)), 0, height, width]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_image_at_its_size_is_the_image(size: int, channels: int) -> None:
    images = noise(5, channels, size, size)
    assert torch.equal(resize_boxes(images, torch.tensor([[0, 0, size, size]] * 5), size), images)
    boxes = torch.tensor([[0, 0, size, size], [1, 2, size, size]])
    larger = noise(2, channels, size + 2, size + 2)
    expected = torch.stack([larger[0, :, :size, :size], larger[1, :, 1 : size + 1, 2:]])
    assert torch.equal(resize_boxes(larger, boxes, size), expected)


@pytest.mark.parametrize(("side", "size"), [(63, 65), (16, 63), (147, 128)])
def test_a_box_is_cut_and_resized_as_pil_does(side: int, size: int) -> None:
    images = noise(64, 3, side, side)
    boxes = draw_boxes(64, side, crop=CROP, generator=generator(3))
    # PIL averages where a box is larger than the result.
    boxes[:, 2:] = boxes[:, 2:].clamp(max=size)
    assert len(boxes.unique(dim=0)) > 50
    for image, (top, left, height, width), result in zip(
        images, boxes.tolist(), resize_boxes(images, boxes, size), strict=True
    ):
        cut = to_pil(image).crop((left, top, left + width, top + height))
        expected = from_pil(cut.resize((size, size), Image.Resampling.BILINEAR))
        assert (result.int() - expected.int()).abs().max() <= 1


ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_jitter_equals_pil_in_the_drawn_order(size: int, channels: int, strength: float) -> None:
    images = noise(24, channels, size, size)
    result = jitter(images, strength=strength, generator=generator(4))
    assert result.dtype == torch.uint8
    draws = generator(4)
    order = torch.rand(24, 3, generator=draws).argsort(dim=1)
    factors = 1 + strength * (2 * torch.rand(24, 3, generator=draws) - 1)
    assert len(order.unique(dim=0)) == 6
    for image, turns, amounts, changed in zip(images, order.tolist(), factors.tolist(), result, strict=True):
        picture = to_pil(image)
        for which, factor in zip(turns, amounts, strict=True):
            picture = ENHANCERS[which](picture).enhance(factor)
        assert torch.equal(changed, from_pil(picture))


def test_jitter_factors_fill_their_range() -> None:
    images = torch.full((20_000, 1, 1, 1), 100, dtype=torch.uint8)
    # One gray pixel: contrast and saturation leave it, brightness scales it.
    result = jitter(images, strength=0.4, generator=generator(5)).double()
    assert (int(result.min()), int(result.max())) == (60, 139)
    # Truncation takes half a code off; uniform within 80 codes.
    assert float(result.mean()) == pytest.approx(99.5, abs=5 * 80 / math.sqrt(12 * 20_000))


RECIPE = Augmentation(crop_padding=0, hflip=True, random_resized_crop=CROP, jitter=0.4)


def test_the_recipe_is_crop_then_mirror_then_jitter() -> None:
    images = noise(16, 3, 65, 65)
    result = RECIPE(images, size=63, generator=generator(6))
    draws = generator(6)
    step = resize_boxes(images, draw_boxes(16, 65, crop=CROP, generator=draws), 63)
    step = crop_flip(step, crop_padding=0, hflip=True, generator=draws)
    assert torch.equal(result, jitter(step, strength=0.4, generator=draws))
    assert result.shape == (16, 3, 63, 63)


def test_without_a_random_crop_the_center_is_taken() -> None:
    images = noise(16, 3, 65, 65)
    assert torch.equal(augmentation(None)(images, size=58, generator=generator(0)), center_crop(images, 58))
    padded = Augmentation(crop_padding=4, hflip=True, random_resized_crop=None, jitter=None)
    expected = crop_flip(center_crop(images, 58), crop_padding=4, hflip=True, generator=generator(7))
    assert torch.equal(padded(images, size=58, generator=generator(7)), expected)


@pytest.mark.parametrize("batch", SIZES)
def test_the_recipe_repeats_with_its_key_and_not_with_another(batch: int) -> None:
    images = noise(batch, 3, 16, 16)
    first = RECIPE(images, size=14, generator=generator(0, 1, 2))
    torch.rand(3)
    assert torch.equal(RECIPE(images, size=14, generator=generator(0, 1, 2)), first)
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(RECIPE(images, size=14, generator=generator(*other)), first)
