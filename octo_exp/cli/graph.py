"""`octo graph FILE.pkl images=X.npy out=Y.npy mode=MODE`: runs an int8 graph file on images.

X.npy: the image's int8 codes [N, C, H, W], for a published model the pixels' (p / 255 - 0.5) * 255 rounded. Y.npy: the
codes of the file's own classifier's logits, int8 [N, classes], written whole or not at all. mode is the arithmetic:
that of the release in floats, or integers alone. A wrong call or a file that does not serve ends with code 2, in one
line.
"""

import io

import numpy as np
import torch

from octo_exp.base.errors import UserError
from octo_exp.base.files import expanded, write_bytes
from octo_exp.cli.words import Words
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.train.graph_net import McuNet

# Images at a time: memory does not grow with their number.
BATCH = 64


def read_images(path: str, channels: int) -> torch.Tensor:
    """A .npy of int8 codes [N, channels, H, W] -> tensor; UserError where it is anything else."""
    try:
        with expanded(path).open("rb") as file:
            images = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, MemoryError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path} is not a readable .npy ({reason[0][:100]}); write it with numpy.save") from error
    if images.dtype != np.int8:
        raise UserError(f"{path} must hold int8 codes, got {images.dtype}; quantise the images first")
    if images.ndim != 4 or images.shape[1] != channels or images.size == 0:
        raise UserError(f"{path} must be [N, {channels}, H, W] with at least one image, got {list(images.shape)}")
    return torch.from_numpy(images)


def logits(net: McuNet, images: torch.Tensor) -> np.ndarray:
    """Images [N, C, H, W] int8 -> codes of the logits [N, classes] int8, BATCH at a time."""
    with torch.no_grad():
        parts = [net.classify(part.float()).to(torch.int8) for part in images.split(BATCH)]
    return torch.cat(parts).numpy()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def main(words: Words) -> int:
    """Run the file on the images; return the exit code."""
    given = words.values
    net = McuNet.with_classifier(read_model(words.given_path), mode=given["mode"])
    images = read_images(given["images"], net.spec.image.channels)
    write_bytes(given["out"], _npy(logits(net, images)), remedy="give another path")
    return 0
