"""A user's own changes of training images, beside `augment`: `+data.transforms.<name>._target_=my.Blur`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.base.failures import message_of


class OwnTransforms:
    """Modules that a batch of training images passes through, in their order, after `augment`.

    Each takes and gives [B, C, S, S] uint8 (as torchvision's v2 transforms do: what one draws holds for the batch).
    What they draw from torch's global generators is keyed like every other draw, and the generators are as they were.

    Raises UserError for what is not callable.
    """

    def __init__(self, modules: Mapping[str, Callable[[Tensor], Any]] | None) -> None:
        self._modules = dict(modules or {})
        for name, module in self._modules.items():
            if not callable(module):
                raise UserError(f"data.transforms.{name}={module!r}: it must name a torch.nn.Module by _target_")

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """images [B, C, S, S] uint8 -> the same shape and type; UserError where a module raises, or gives another."""
        if not self._modules:
            return images
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), torch.no_grad():
            torch.manual_seed(seed)
            for name, module in self._modules.items():
                images = _changed(name, module, images)
        return images


def _changed(name: str, module: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    if isinstance(module, nn.Module):
        module.to(images.device)
    try:
        changed = module(images)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data.transforms.{name}: {message_of(error)}") from error
    if not isinstance(changed, Tensor) or (changed.shape, changed.dtype) != (images.shape, images.dtype):
        found = f"{list(changed.shape)} {changed.dtype}" if isinstance(changed, Tensor) else type(changed).__name__
        raise UserError(
            f"data.transforms.{name} makes {found} of {list(images.shape)} {images.dtype}, and images must stay what "
            "they are: sizes are data.image_size, data.fit and data.augment, normalisation is data.mean and data.std"
        )
    return changed
