"""What a data set's configuration may say: each check returns the value or raises a UserError that names the key."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from octo_exp.base.errors import UserError

T = TypeVar("T")


def at_least(key: str, value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"data.{key}={value}: it must be a whole number of at least {least}")
    return value


def side(key: str, value: Any, name: str) -> int:
    """A side in pixels: the model's, else that of the data's own images where all have one."""
    if value is None:
        raise UserError(f"data.{key}: neither the model states one nor {name}, whose images vary; set data.{key}=224")
    return at_least(key, value, 1)


def one_of(key: str, value: T, allowed: Sequence[T]) -> T:
    """One of the allowed values."""
    if value not in allowed:
        raise UserError(f"data.{key}={value}: it must be one of {', '.join(map(str, allowed))}")
    return value


def fraction(key: str, value: Any) -> float:
    """A number between 0 and 1, both excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(f"data.{key}={value}: it must lie between 0 and 1, both excluded")
    return float(value)


def native_shape(shape: Sequence[int | None], fit: str) -> tuple[int, int | None, int | None]:
    """(C, H, W), H and W both None where sizes vary."""
    sides = list(shape)
    if len(sides) == 3 and sides[0] in (1, 3):
        channels, height, width = int(sides[0]), sides[1], sides[2]
        if height is None and width is None and fit != "pad":
            return channels, None, None
        if height is not None and width is not None:
            return channels, at_least("shape", height, 1), at_least("shape", width, 1)
    raise UserError(
        f"data.shape={sides}: it must be [C, H, W] with C 1 or 3; H and W null where sizes vary, with data.fit=resize"
    )


def split_names(train: str, test: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the splits to train and to test on; a name holds several joined by "+"."""
    names = tuple(
        tuple(part for part in name.split("+") if part) if isinstance(name, str) else () for name in (train, test)
    )
    shared = set(names[0]) & set(names[1])
    if not all(names) or shared:
        raise UserError(
            f"data.train_split={train}, data.test_split={test}: each must name a split, or several as a+b; none in both"
        )
    return names[0], names[1]


def kept_size(image_size: int, eval_crop: float | None, fit: str) -> int:
    """Side of the images in memory, of which evaluation takes the central `image_size`: ceil(S / eval_crop)."""
    if eval_crop is None:
        return image_size
    share = fraction("eval_crop", eval_crop)
    if fit != "resize":
        raise UserError(f"data.eval_crop={eval_crop} with data.fit={fit}: set data.fit=resize or data.eval_crop=null")
    return math.ceil(image_size / share)
