"""Random changes of training images, a batch at a time: padded crop, resized crop, mirroring, colour jitter.

Every draw is made on the CPU, whatever the device of the images, so that it repeats on another one. Images go in and
come out as uint8, as every picture library has it between two changes: what follows sees whole pixel codes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.data.checks import at_least
from octo_exp.data.transforms import center_crop, convert_channels

_KEYS = ("crop_padding", "hflip", "random_resized_crop", "jitter")
# Boxes drawn for an image before the central one is taken.
_TRIES = 10
_CONTRAST, _SATURATION = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizedCrop:
    """A box of random area and form, brought to the model's size (Szegedy et al., 2014, arXiv 1409.4842).

    Args:
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height; its logarithm is uniform.

    """

    scale: tuple[float, float]
    ratio: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What happens to a batch of training images, in this order.

    Args:
        random_resized_crop: from the whole image; with None the center is taken.
        crop_padding: pixels of black around it, of which a random crop leaves the same size; 0 for none.
        hflip: mirror left to right with probability 1/2.
        jitter: j: brightness, contrast and saturation, in random order, each by a factor in [1 - j, 1 + j]; or None.

    """

    crop_padding: int
    hflip: bool
    random_resized_crop: ResizedCrop | None
    jitter: float | None

    def __call__(self, images: Tensor, *, size: int, generator: torch.Generator) -> Tensor:
        """images [B, C, K, K] uint8, K >= size -> [B, C, size, size] uint8; `generator` is a CPU generator."""
        crop = self.random_resized_crop
        if crop is None:
            images = center_crop(images, size)
        else:
            boxes = draw_boxes(len(images), images.shape[-1], crop=crop, generator=generator)
            images = resize_boxes(images, boxes, size)
        if self.crop_padding or self.hflip:
            images = crop_flip(images, crop_padding=self.crop_padding, hflip=self.hflip, generator=generator)
        return images if self.jitter is None else jitter(images, strength=self.jitter, generator=generator)


def augmentation(config: Mapping[str, Any] | None) -> Augmentation:
    """The augmentation that `data.augment` names; None for none.

    Raises:
        UserError: a key that is missing or unknown, a value out of its range, two kinds of crop at once.

    """
    if config is None:
        return Augmentation(crop_padding=0, hflip=False, random_resized_crop=None, jitter=None)
    if set(config) != set(_KEYS) or not isinstance(config["hflip"], bool):
        raise UserError(
            f"data.augment={dict(config)}: it must be null or {{crop_padding: pixels, hflip: true|false, "
            f"random_resized_crop: {{scale: [a,b], ratio: [a,b]}}|null, jitter: number|null}}"
        )
    padding = at_least("augment.crop_padding", config["crop_padding"], 0)
    crop = _resized_crop(config["random_resized_crop"])
    if crop is not None and padding:
        raise UserError(
            f"data.augment.crop_padding={padding} beside random_resized_crop: one of the two crops; set "
            f"data.augment.crop_padding=0 or data.augment.random_resized_crop=null"
        )
    return Augmentation(
        crop_padding=padding, hflip=config["hflip"], random_resized_crop=crop, jitter=_strength(config["jitter"])
    )


def _resized_crop(config: Mapping[str, Any] | None) -> ResizedCrop | None:
    if config is None:
        return None
    problem = f"data.augment.random_resized_crop={config}: it must be null or {{scale: [a,b], ratio: [a,b]}}"
    if not isinstance(config, Mapping) or set(config) != {"scale", "ratio"}:
        raise UserError(problem)
    scale, ratio = _range(config["scale"]), _range(config["ratio"])
    if scale is None or ratio is None or scale[1] > 1:
        raise UserError(f"{problem} with 0 < a <= b, and b of scale at most 1")
    return ResizedCrop(scale=scale, ratio=ratio)


def _range(value: Any) -> tuple[float, float] | None:
    """Both ends of a range of positive numbers, None for anything else."""
    ends = list(value) if isinstance(value, Sequence) else []
    numbers = [float(v) for v in ends if isinstance(v, int | float) and not isinstance(v, bool)]
    return (numbers[0], numbers[1]) if len(ends) == len(numbers) == 2 and 0 < numbers[0] <= numbers[1] else None


def _strength(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(f"data.augment.jitter={value}: it must be null or a number above 0 and at most 1")
    return float(value)


def draw_boxes(batch: int, side: int, *, crop: ResizedCrop, generator: torch.Generator) -> Tensor:
    """One box inside a square image for each of a batch.

    Area and form are drawn ten times; the first box that fits is taken, at a place drawn uniformly, and where none
    fits the largest central one that keeps to `ratio`.

    Args:
        batch: number of boxes.
        side: of the images, in pixels.
        crop: ranges of area and form.
        generator: CPU generator, advanced by the same amount whatever is drawn.

    Returns:
        [B, 4] int64: top, left, height, width in pixels; each box lies inside the image.

    """
    area, form, place = (
        torch.rand(rows, batch, generator=generator, dtype=torch.float64) for rows in (_TRIES, _TRIES, 2)
    )
    area = side**2 * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * area)
    low, high = map(math.log, crop.ratio)
    form = torch.exp(low + (high - low) * form)
    # [tries, 2, B]: heights and widths.
    sides = torch.stack([(area / form).sqrt(), (area * form).sqrt()], dim=1).round_()
    fits = ((sides > 0) & (sides <= side)).all(dim=1)
    # argmax gives the first of equals.
    sides = sides[fits.int().argmax(dim=0), :, torch.arange(batch)].T
    central = torch.tensor([[min(side, round(side / crop.ratio[0]))], [min(side, round(side * crop.ratio[1]))]])
    sides = torch.where(fits.any(dim=0), sides, central)
    free = side - sides
    start = torch.where(fits.any(dim=0), place * (free + 1), free / 2).floor_()
    return torch.cat([start, sides]).T.long()


def resize_boxes(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of every image and bring it to a square, bilinear; pixels outside the box have no part in it.

    Equal to cutting and resizing with PIL to one code where the box is no larger than `size`. A larger one is
    sampled without the averaging that PIL adds; evaluation keeps images of at most `size` / 0.875 as a rule.

    images [B, C, K, K] uint8, boxes [B, 4] (top, left, height, width) -> [B, C, size, size] uint8.
    """
    start, length = boxes[:, :2, None].float(), boxes[:, 2:, None].float()
    # Centers of the result's pixels as places in the image, in pixels from its first center: [B, 2, size].
    places = start + (torch.arange(size) + 0.5) * (length / size) - 0.5
    places = torch.minimum(torch.maximum(places, start), start + length - 1)
    # grid_sample counts from -1 to 1, edge to edge, and takes x before y.
    rows, cols = ((2 * places + 1) / images.shape[-1] - 1).to(images.device).unbind(dim=1)
    grid = torch.stack([cols[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], dim=-1)
    return F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False).round_().to(torch.uint8)


def crop_flip(images: Tensor, *, crop_padding: int, hflip: bool, generator: torch.Generator) -> Tensor:
    """Crop every image at its own random place after black padding, and mirror it left to right with probability 1/2.

    Args:
        images: [B, C, S, S], any dtype and device.
        crop_padding: pixels of padding on every side; 0 leaves the images where they are.
        hflip: mirror or not.
        generator: CPU generator, advanced by the same amount whatever the options.

    Returns:
        [B, C, S, S] as `images`.

    """
    batch, _, size, _ = images.shape
    offsets = torch.randint(0, 2 * crop_padding + 1, (2, batch), generator=generator)
    flips = torch.randint(0, 2, (batch,), generator=generator).bool() & hflip
    if not crop_padding:
        return torch.where(flips.view(-1, 1, 1, 1).to(images.device), images.flip(3), images)
    place = torch.arange(size)
    rows = offsets[0, :, None] + place
    cols = offsets[1, :, None] + torch.where(flips[:, None], place.flip(0), place)
    rows, cols = rows.to(images.device), cols.to(images.device)
    padded = F.pad(images, (crop_padding,) * 4)
    which = torch.arange(batch, device=images.device)[:, None, None]
    # Indices on both sides of a slice put the sliced axis last: [B, S, S, C].
    return padded[which, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2).contiguous()


def jitter(images: Tensor, *, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation, in an order of each image's own.

    Each is a blend, base + f * (image - base), clipped to [0, 255] and truncated to a whole code, with f uniform in
    [1 - strength, 1 + strength] and base black, the image's mean luma, or the luma of the pixel: PIL's ImageEnhance,
    bit for bit.

    images [B, 1 or 3, H, W] uint8 -> as `images`; `generator` is a CPU generator.
    """
    batch = len(images)
    order = torch.rand(batch, 3, generator=generator).argsort(dim=1)
    factors = 1 + strength * (2 * torch.rand(batch, 3, generator=generator) - 1)
    for turn in range(3):
        which, factor = (of[:, turn].view(-1, 1, 1, 1).to(images.device) for of in (order, factors))
        base = _base(images, which)
        images = images.float().sub_(base).mul_(factor).add_(base).clamp_(0, 255).to(torch.uint8)
    return images


def _base(images: Tensor, which: Tensor) -> Tensor:
    """What each image is blended with: images [B, C, H, W], which [B, 1, 1, 1] in 0..2 -> [B, 1, H, W] float32."""
    luma = convert_channels(images, 1)
    # Whole numbers: the mean is rounded half up whatever the order of the sum.
    pixels = luma[0].numel()
    mean = (2 * luma.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64) + pixels) // (2 * pixels)
    return luma * (which == _SATURATION).float() + mean * (which == _CONTRAST).float()
