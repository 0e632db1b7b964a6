"""Float <-> int8: quantise, dequantise and the GEMM's epilogue, block by block so that temporaries stay in cache."""

import torch
from torch import Tensor

# Elements a block on CPU: four float temporaries of 64 Ki elements fit a 2 MiB second-level cache.
BLOCK = 65_536


def _dense_flat(t: Tensor) -> Tensor | None:
    """The tensor's storage as one row if it is dense in memory (contiguous or channels-last), else None."""
    channels_last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return t.as_strided((t.numel(),), (1,), t.storage_offset()) if t.is_contiguous() or channels_last else None


def _round_into(
    out: Tensor, t: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, options: dict
) -> None:
    low, high, noise = options["low"], options["high"], options["noise"]
    buffer = t / scale if low is None and high is None else torch.clamp(t, low, high).div_(scale)
    buffer = buffer.round_() if noise is None else buffer.add_(noise).floor_()
    out.copy_(buffer.add_(zero_point).clamp_(q_min, q_max))


def quantize(
    t: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    q_min: int,
    q_max: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """q = clamp(round(clip(t, low, high) / scale) + zero_point, q_min, q_max) as int8, of t's shape and layout.

    scale and zero_point are scalars or broadcast against t. Rounding is to nearest even, or floor(. + noise) with
    uniform noise in [0, 1) of t's shape: stochastic rounding.
    """
    out = torch.empty_like(t, dtype=torch.int8)
    flat_t, flat_out = _dense_flat(t), _dense_flat(out)
    options = {"low": low, "high": high, "noise": noise}
    blocked = t.device.type == "cpu" and t.numel() > BLOCK and scale.dim() == 0
    if not blocked or flat_t is None or flat_out is None:
        _round_into(out, t, scale, zero_point, q_min, q_max, options)
        return out
    noises = None if noise is None else torch.empty_like(t).copy_(noise).as_strided((t.numel(),), (1,)).split(BLOCK)
    for index, (source, target) in enumerate(zip(flat_t.split(BLOCK), flat_out.split(BLOCK), strict=True)):
        options["noise"] = None if noises is None else noises[index]
        _round_into(target, source, scale, zero_point, q_min, q_max, options)
    return out


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(q - zero_point) * scale as float32, of q's shape and layout; exact before the one rounding of the product."""
    return q.to(torch.float32).sub_(zero_point).mul_(scale)


def scale_accumulator(acc: Tensor, scale: Tensor, offset: Tensor | None, out: Tensor | None = None) -> Tensor:
    """acc [M, N] int32 or int64, scale scalar or [N], offset [N] or None -> acc * scale + offset, [M, N] float32.

    `out` [M, N] float32, when given, is written and returned.
    """
    out = torch.empty(acc.shape, dtype=torch.float32, device=acc.device) if out is None else out
    rows = acc.shape[0] if acc.device.type != "cpu" else max(1, BLOCK // max(1, acc.shape[1]))
    for source, target in zip(acc.split(rows), out.split(rows), strict=True):
        torch.mul(source, scale, out=target)
        if offset is not None:
            target.add_(offset)
    return out
