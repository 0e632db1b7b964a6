"""Encoded images (PNG, JPEG, WebP bytes) to uint8 pixels, decoded once with PIL, one after another.

Measured on 60,000 28x28 PNGs: 2 s in one thread and 3.6 s in two, since such small decodes hold the interpreter lock.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from octo_exp.base.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Raised when what decoding makes of the same bytes changes: 2 turns photographs as their EXIF data say.
DECODING = 2
# Modes of PIL with 8 bits a channel whose channels are what a network takes, or become that.
_EIGHT_BITS = ("L", "LA", "RGB", "RGBA", "CMYK")
# What the others are read as, which loses nothing that a network could use.
_READ_AS = {"P": "RGB", "PA": "RGB", "1": "L", "YCbCr": "RGB", "RGBX": "RGB"}

# Channels, height and width; null height and width say that sizes vary.
Shape = tuple[int, int | None, int | None]


def decoded_shape(shape: Shape, size: int) -> tuple[int, int, int]:
    """Channels, height and width of every decoded image, in pixels."""
    channels, height, width = shape
    return channels, height or size, width or size


def decode_images(
    encoded: Iterable[bytes | None], *, shape: Shape, size: int, stretch: bool, where: Callable[[int], str]
) -> Iterator[np.ndarray]:
    """Decode images of one shape, or of many, which are then brought to a square; turned as their EXIF data say.

    Sets of photographs of any size hold gray, CMYK and transparent ones too: they become RGB where that is the shape.

    Args:
        encoded: files' contents.
        shape: (C, H, W); with H and W null every image's short side is resized to `size` and its center cropped.
        size: side in pixels, used where H and W are null.
        stretch: there bring both sides to `size`, rather than the short one with the long one cropped.
        where: names the i-th image in an error.

    Yields:
        [C, H, W] uint8, or [C, size, size] where H and W are null.

    Raises:
        UserError: bytes that do not decode, or another number of channels or another size than `shape` says.

    """
    channels, height, width = shape
    square = (
        partial(_square, size=size, stretch=stretch, rgb=channels == 3) if height is None or width is None else None
    )
    for i, data in enumerate(encoded):
        pixels = _decode(data, square, where, i)
        if pixels.shape[0] != channels:
            raise UserError(
                f"{where(i)}: the image has {pixels.shape[0]} channel(s), data.shape={_plain(shape)} says {channels}: "
                f"set data.shape and data.mean, data.std to the file's"
            )
        if not square and pixels.shape != shape:
            raise UserError(
                f"{where(i)}: the image is {pixels.shape[1]}x{pixels.shape[2]}, data.shape={_plain(shape)} says "
                f"{height}x{width}: correct data.shape, or use [{channels},null,null] where sizes vary"
            )
        yield pixels


def decode_alone(encoded: bytes, *, size: int | None, stretch: bool, where: str) -> np.ndarray:
    """Decode one image of anybody's, in any number of channels, as RGB.

    Args:
        encoded: a file's content.
        size: the side in pixels that it is brought to as `decode_images` brings images of any size; None: its own size.
        stretch: as there.
        where: names it in an error.

    Returns:
        [3, H, W] uint8.

    """
    square = _rgb if size is None else partial(_square, size=size, stretch=stretch, rgb=True)
    return _decode(encoded, square, lambda i: where, 0)


def _rgb(image: "Image") -> "Image":
    return image.convert("RGB")


def _decode(
    data: bytes | None, square: "Callable[[Image], Image] | None", where: Callable[[int], str], i: int
) -> np.ndarray:
    """One image as [C, H, W] uint8, passed through `square` where it is given; a palette is RGB, a bitmap gray."""
    from PIL import Image

    if not data:
        raise UserError(f"{where(i)}: no image bytes: export or download the file again with its images embedded")
    try:
        with Image.open(BytesIO(data)) as image:
            upright = _upright(image)
            mode = _READ_AS.get(upright.mode, upright.mode)
            converted = upright if mode == upright.mode else upright.convert(mode)
            pixels = np.array(converted if square is None or mode not in _EIGHT_BITS else square(converted))
    # PIL's decoders raise whatever their format's parser raises: OSError, SyntaxError, struct.error, zlib.error ...
    except Exception as error:
        raise UserError(
            f"{where(i)}: the image does not decode ({first_line(error)}): download the file again or remove the image"
        ) from error
    if mode not in _EIGHT_BITS:
        raise UserError(f"{where(i)}: the image has mode {mode}, not 8 bits a channel: convert it to L or RGB")
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _upright(image: "Image") -> "Image":
    """The picture as its camera was held, which `datasets` and every viewer show."""
    from PIL.ExifTags import Base
    from PIL.ImageOps import exif_transpose

    # Some formats keep their EXIF data behind the pixels.
    image.load()
    return image if image.getexif().get(Base.Orientation) is None else exif_transpose(image)


def _square(image: "Image", *, size: int, stretch: bool, rgb: bool) -> "Image":
    """Short side to `size`, bilinear with antialiasing, long side cropped about its center, or both sides to `size`.

    By PIL, not by torch as for images of one size: torch starts its threads for every picture, which took tens of ms
    each on busy cores against 0.2 ms.
    """
    from PIL.Image import Resampling

    if rgb:
        image = image.convert("RGB")
    scale = size / min(image.size)
    width, height = (size, size) if stretch else (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image if (width, height) == image.size else image.resize((width, height), Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def first_line(error: BaseException) -> str:
    """The type and the first line of a library's message: what fits into one line of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _plain(shape: Shape) -> str:
    return "[" + ",".join("null" if side is None else str(side) for side in shape) + "]"
