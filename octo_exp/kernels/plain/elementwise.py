"""Float <-> int8: quantise, dequantise and the GEMM's epilogue, block by block so that temporaries stay in cache."""

import torch
from torch import Tensor

from octo_exp.kernels.plain.philox import uniform

# Elements a block on CPU: four float temporaries of 64 Ki elements fit a 2 MiB second-level cache.
BLOCK = 65_536


def dense_flat(t: Tensor) -> Tensor | None:
    """Return the elements as they lie in memory, one row, if t is dense (contiguous or channels-last), else None."""
    channels_last = t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    return t.as_strided((t.numel(),), (1,), t.storage_offset()) if t.is_contiguous() or channels_last else None


def has_row_scales(t: Tensor, scale: Tensor) -> bool:
    """Whether scale is [R, 1, ...] for a t [R, ...]: one for each row of memory, if t is dense."""
    return scale.dim() == t.dim() and scale.shape[0] == t.shape[0] and scale.numel() == scale.shape[0]


def _round_into(out: Tensor, t: Tensor, noise: Tensor | None, constants: dict) -> None:
    low, high, scale = constants["low"], constants["high"], constants["scale"]
    buffer = t / scale if low is None and high is None else torch.clamp(t, low, high).div_(scale)
    buffer = buffer.round_() if noise is None else buffer.add_(noise).floor_()
    out.copy_(buffer.add_(constants["zero_point"]).clamp_(constants["q_min"], constants["q_max"]))


def quantize(
    t: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    q_min: int,
    q_max: int,
    low: Tensor | None = None,
    high: Tensor | None = None,
    seed: int | None = None,
) -> Tensor:
    """q = clamp(round(clip(t, low, high) / scale) + zero_point, q_min, q_max) as int8, of t's shape and layout.

    scale and zero_point are scalars or broadcast against t. Rounding is to nearest even, or, given a seed, floor(. +
    noise) with `philox.uniform` noise: stochastic rounding. Element i draws from (seed, i); i is its place in memory
    where t is dense (see `dense_flat`), in logical order otherwise.
    """
    out = torch.empty_like(t, dtype=torch.int8)
    constants = {"scale": scale, "zero_point": zero_point, "q_min": q_min, "q_max": q_max, "low": low, "high": high}
    flat_t, flat_out = dense_flat(t), dense_flat(out)
    if flat_t is None or flat_out is None or scale.dim() > 0 or zero_point.dim() > 0:
        noise = None if seed is None else uniform(seed, t.numel(), t.device)
        if noise is not None:
            noise = noise.reshape(t.shape) if flat_t is None else noise.as_strided(t.shape, t.stride())
        _round_into(out, t, noise, constants)
        return out
    block = BLOCK if t.device.type == "cpu" else max(1, t.numel())
    for start in range(0, t.numel(), block):
        part = flat_t[start : start + block]
        noise = None if seed is None else uniform(seed, part.numel(), t.device, start)
        _round_into(flat_out[start : start + block], part, noise, constants)
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
