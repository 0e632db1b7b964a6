"""How the arithmetic `integer` lays its tensors out on a CPU, and into which pieces it cuts them.

Images are channels-last, so that the loops' [N, H, W*C] and the GEMMs' [N*H*W, C] are views of [N, C, H, W].
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octo_exp.graph.train.constants import ConvConstants
from octo_exp.kernels.cpu import graph_loops
from octo_exp.kernels.cpu.loops import array
from octo_exp.kernels.int8 import empty_channels_last

# Bytes of accumulators, or of gradients, that exist at a time.
CHUNK_BYTES = 2**19


def images_of(t: Tensor) -> np.ndarray:
    """[N, C, H, W] -> [N, H*W*C], a view where t is channels-last."""
    # By numpy, whose views cost less than torch's.
    return np.ascontiguousarray(array(t).transpose(0, 2, 3, 1)).reshape(t.shape[0], -1)


def rows_of(t: Tensor) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W*C], a view where t is channels-last."""
    return np.ascontiguousarray(array(t).transpose(0, 2, 3, 1)).reshape(t.shape[0], t.shape[2], -1)


def empty_codes(n: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Return uninitialised int8 codes [n, channels, *size], channels-last."""
    # By numpy, as below: for images this small torch takes longer to make room than the loops to fill it.
    return torch.from_numpy(np.empty((n, *size, channels), np.int8).transpose(0, 3, 1, 2))


def empty_like(t: Tensor) -> Tensor:
    """Return uninitialised float32 of the shape of t [N, C, H, W], channels-last."""
    return empty_channels_last(torch.Size((t.shape[0], *t.shape[2:], t.shape[1])))


def empty_bits(t: Tensor, wanted: bool) -> Tensor:
    """Return room for the bits of t [N, ...], [N, bytes]; no bytes where they are not wanted."""
    n = t.shape[0]
    return torch.from_numpy(np.empty((n, (t.numel() // n + 7) // 8 if wanted else 0), np.uint8))


def is_pointwise(kernel: tuple[int, int], c: ConvConstants) -> bool:
    """Whether the convolution is one matrix product of the images as they lie."""
    g = c.geometry
    return kernel == (1, 1) and g.stride == (1, 1) and g.padding == (0, 0) and g.groups == 1


def has_loops(c: ConvConstants) -> bool:
    """Whether the convolution is one for `cpu_depthwise`."""
    g = c.geometry
    return c.is_depthwise and g.stride[0] == g.stride[1] and g.dilation == (1, 1)


def chunks_of(images: int, bytes_per_image: int) -> Iterator[slice]:
    """Split the images into parts of at most CHUNK_BYTES, or of one image."""
    step = max(1, CHUNK_BYTES // max(1, bytes_per_image))
    return (slice(start, min(images, start + step)) for start in range(0, images, step))


def centred(codes: Tensor, zero: int) -> Tensor:
    """codes - zero as float32, channels-last."""
    out = empty_like(codes)
    graph_loops.centred(images_of(codes).reshape(-1), zero, images_of(out).reshape(-1))
    return out


def loop_sizes(codes_shape: torch.Size, kernel: tuple[int, int], c: ConvConstants) -> tuple[Any, ...]:
    """Return what depthwise loops ask for: kernel, stride, padding, (H, W)."""
    return kernel, c.geometry.stride[0], c.geometry.padding, (codes_shape[2], codes_shape[3])


def parts_of(images: int) -> int:
    """Return how many threads share the images."""
    return max(1, min(torch.get_num_threads(), images))
