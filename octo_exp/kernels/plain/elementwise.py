"""Float <-> int8, element by element: rounding, dequantisation, and sums of products scaled."""

import torch
from torch import Tensor

# Elements a block on CPU: four float temporaries of 64 Ki elements fit a 2 MiB second-level cache.
BLOCK = 65_536


def round_into(
    out: Tensor,
    t: Tensor,
    noise: Tensor | None,
    scale: Tensor,
    zero_point: Tensor,
    q_min: int,
    q_max: int,
    low: Tensor | None,
    high: Tensor | None,
) -> None:
    """Write to out, int8, what `Backend.quantize` says of t; noise, of t's shape, or None for nearest even."""
    buffer = t / scale if low is None and high is None else torch.clamp(t, low, high).div_(scale)
    buffer = buffer.round_() if noise is None else buffer.add_(noise).floor_()
    out.copy_(buffer.add_(zero_point).clamp_(q_min, q_max))


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(q - zero_point) * scale as float32, of q's shape and layout; exact before the one rounding of the product."""
    return q.to(torch.float32).sub_(zero_point).mul_(scale)


def scale_accumulator(acc: Tensor, scale: Tensor, offset: Tensor | None, out: Tensor | None = None) -> Tensor:
    """acc [M, N] int32 or int64, scale scalar or [N], offset [N] or None -> acc * scale + offset, [M, N] float32.

    `out` [M, N] float32, when given, is written and returned. Block by block, so that temporaries stay in cache.
    """
    out = torch.empty(acc.shape, dtype=torch.float32, device=acc.device) if out is None else out
    rows = acc.shape[0] if acc.device.type != "cpu" else max(1, BLOCK // max(1, acc.shape[1]))
    for source, target in zip(torch.split(acc, rows), torch.split(out, rows), strict=True):
        torch.mul(source, scale, out=target)
        if offset is not None:
            target.add_(offset)
    return out
