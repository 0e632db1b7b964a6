"""The masks that gradients of ReLU and max pooling need: all that the backward pass keeps of an epilogue.

Channels last, [N, H, W, .] or [..., .]: one bit an output for ReLU alone, one int8 a window for pooling.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_bits(positive: Tensor) -> Tensor:
    """Bool [..., C] -> uint8 [..., ceil(C/8)], lowest bit first."""
    padded = F.pad(positive, (0, -positive.shape[-1] % 8))
    padded = padded.reshape(*padded.shape[:-1], padded.shape[-1] // 8, 8)
    weights = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8, device=positive.device)
    return (padded * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, channels: int) -> Tensor:
    """uint8 [..., ceil(C/8)] -> bool [..., C]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> shifts & 1).flatten(-2)[..., :channels].bool()


def passes(y: Tensor) -> Tensor:
    """Bool, of y's shape: where ReLU lets a gradient through. At a NaN, as torch does: it must not become a plain 0."""
    return ~(y <= 0)
