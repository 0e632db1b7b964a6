"""What follows a GEMM and is fused into its epilogue: ReLU, max pooling, and the masks their gradients need.

Plain torch, any device: the reference of the fused loops. Tensors are [N, C, H, W], or [..., C] in other ranks; masks
have their channels last, [N, H, W, .] or [..., .], and hold all that the backward pass needs: one bit an output for
ReLU, one int8 a window for pooling.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.workload import Epilogue


def pack_bits(positive: Tensor) -> Tensor:
    """Bool [..., C] -> uint8 [..., ceil(C/8)], lowest bit first."""
    padded = F.pad(positive, (0, -positive.shape[-1] % 8)).unflatten(-1, (-1, 8))
    weights = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8, device=positive.device)
    return (padded * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, channels: int) -> Tensor:
    """uint8 [..., ceil(C/8)] -> bool [..., C]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> shifts & 1).flatten(-2)[..., :channels].bool()


def passes(y: Tensor) -> Tensor:
    """Bool, of y's shape: where ReLU lets a gradient through. At a NaN, as torch does: it must not become a plain 0."""
    return ~(y <= 0)


def _rows(t: Tensor) -> Tensor:
    return t.permute(0, 2, 3, 1) if t.dim() == 4 else t


def activate(y: Tensor, epilogue: Epilogue) -> tuple[Tensor, Tensor | None]:
    """See `fused.activate`."""
    k = epilogue.pool
    if k == 1:
        return (F.relu(y), pack_bits(_rows(passes(y)))) if epilogue.relu else (y, None)
    n, c, h, w = y.shape
    windows = y[:, :, : h // k * k, : w // k * k].reshape(n, c, h // k, k, w // k, k).transpose(3, 4).flatten(4, 5)
    peak, index = windows.max(4)
    index = index.to(torch.int8)
    if epilogue.relu:
        index = torch.where(passes(peak), index, torch.full_like(index, epilogue.dead))
        peak = F.relu(peak)
    return peak.contiguous(memory_format=torch.channels_last), _rows(index).contiguous()


def mask_gradient(g: Tensor, mask: Tensor, epilogue: Epilogue) -> Tensor:
    """See `fused.mask_gradient`."""
    if epilogue.pool > 1 and not epilogue.relu:
        return g
    rows = _rows(g)
    passed = unpack_bits(mask, rows.shape[-1]) if epilogue.pool == 1 else mask < epilogue.dead
    out = torch.where(passed, rows, 0.0)
    return out.permute(0, 3, 1, 2) if g.dim() == 4 else out


def spread(t: Tensor, mask: Tensor, epilogue: Epilogue, size: tuple[int, int]) -> Tensor:
    """See `fused.spread`."""
    k = epilogue.pool
    n, c, ph, pw = t.shape
    out = torch.zeros((n, c, *size), dtype=t.dtype, device=t.device).contiguous(memory_format=torch.channels_last)
    index = mask.permute(0, 3, 1, 2)
    for tap in range(k * k):
        out[:, :, tap // k : ph * k : k, tap % k : pw * k : k] = torch.where(index == tap, t, 0)
    return out
