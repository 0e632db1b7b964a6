"""Run a model file on images: octo graph --model FILE.pkl --input X.npy --output Y.npy --mode MODE.

X.npy: the image's int8 codes [N, C, H, W], for a published model the pixels' (p / 255 - 0.5) * 255 rounded. Y.npy: the
codes of the file's own classifier's logits, int8 [N, classes], written whole or not at all. A wrong call ends with code
2, a file that does not serve with 1; either says why in one line.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.base.files import expanded, write_bytes
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.train.chains import MODES
from octo_exp.graph.train.graph_net import McuNet

# Images at a time: memory does not grow with their number.
BATCH = 64


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see octo graph --help")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="octo graph", description="Logits of a microcontroller model.")
    parser.add_argument("--model", required=True, help="model file, .pkl")
    parser.add_argument("--input", required=True, help="int8 codes [N, C, H, W], .npy")
    parser.add_argument("--output", required=True, help="where the logits go, .npy: int8 [N, classes]")
    parser.add_argument("--mode", required=True, choices=tuple(MODES), help="arithmetic")
    return parser.parse_args(argv)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    try:
        options = _arguments(argv)
        net = McuNet.with_classifier(read_model(options.model), mode=options.mode)
        images = read_images(options.input, net.spec.image.channels)
        write_bytes(expanded(options.output), _npy(logits(net, images)), remedy="give another path")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
