"""Batched transforms of images as tensors: size and channels once in set-up, crop and normalization per batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.base.errors import UserError

# Images converted at once: bounds the wider copy to tens of MiB for small pictures.
_CHUNK = 1024
# ITU-R 601 luma in 16-bit fixed point, 19595 + 38470 + 7471 = 2^16: the weights PIL's convert("L") uses.
_LUMA = (19595, 38470, 7471)


def fit_images(images: Tensor, *, size: int, fit: str) -> Tensor:
    """Bring images to a square of `size` pixels.

    `pad` centers them on black (an odd pixel goes to the right and below); `resize` scales the short side to `size`,
    bilinear with antialiasing, and crops the long side about its center; `stretch` scales both sides.

    Args:
        images: [N, C, H, W] uint8.
        size: side in pixels.
        fit: pad | resize | stretch.

    Returns:
        [N, C, size, size] uint8; the same tensor where nothing is to be done.

    Raises:
        UserError: `pad` and an image side above `size`.

    """
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if fit == "pad":
        return _pad_images(images, size)
    scale = size / min(height, width)
    scaled = (max(size, round(height * scale)), max(size, round(width * scale))) if fit == "resize" else (size, size)
    top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    fitted = images.new_empty((len(images), images.shape[1], size, size))
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].float()
        resized = F.interpolate(chunk, size=scaled, mode="bilinear", antialias=True, align_corners=False)
        cropped = resized[..., top : top + size, left : left + size]
        fitted[start : start + _CHUNK] = cropped.round_().clamp_(0, 255).to(torch.uint8)
    return fitted


def _pad_images(images: Tensor, size: int) -> Tensor:
    height, width = images.shape[-2:]
    if max(height, width) > size:
        raise UserError(
            f"data.fit=pad cannot bring {height}x{width} images to {size}x{size} pixels: use data.fit=resize "
            f"or a model with image_size >= {max(height, width)}"
        )
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(images, (left, size - width - left, top, size - height - top))


def convert_channels(images: Tensor, channels: int) -> Tensor:
    """Gray to RGB by repetition, RGB to gray by ITU-R 601 luma (equal to PIL's, bit for bit).

    images [N, 1 or 3, H, W] uint8 -> [N, channels, H, W] uint8.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    gray = images.new_empty((len(images), 1, *images.shape[-2:]))
    for start in range(0, len(images), _CHUNK):
        red, green, blue = (images[start : start + _CHUNK, i : i + 1].int().mul_(_LUMA[i]) for i in range(3))
        gray[start : start + _CHUNK] = red.add_(green).add_(blue).add_(1 << 15).bitwise_right_shift_(16)
    return gray


def center_crop(images: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, C, size, size], a view; an odd pixel is split as torchvision does, half to even."""
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def match_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Per-channel statistics after a change of channels: repeated for gray to RGB, averaged for RGB to gray."""
    if len(values) == channels:
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values) * channels


def statistics(key: str, values: Sequence[float], *, channels: int, native: int) -> tuple[float, ...]:
    """data.mean or data.std as written -> one number a channel; UserError where it fits neither number of channels."""
    if len(values) not in (channels, native):
        raise UserError(
            f"data.{key}={list(values)} has {len(values)} value(s): it needs one per channel, {native} "
            f"(data.shape) or {channels} (data.channels)"
        )
    return match_channels([float(value) for value in values], channels)


def normalize(images: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std; images [B, C, H, W] uint8, mean and std [C] in units of 1 -> float32."""
    shape = (1, -1, 1, 1)
    scaled = images.float().div_(255)
    return scaled.sub_(mean.to(images.device).view(shape)).div_(std.to(images.device).view(shape))
