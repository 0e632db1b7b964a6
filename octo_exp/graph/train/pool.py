"""Pools of codes, forward and backward: one form for both arithmetics and every device.

Codes come as int8 or as whole numbers in float32, and leave as they came; gradients are float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.graph.parts import Q_MIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Step: the pool of windows of kernel x kernel codes; kind is max (a border never wins) or average (no border)."""

    kind: str
    kernel: int
    stride: int
    padding: int


def forward(x: Tensor, pool: Pool, *, want_positions: bool) -> tuple[Tensor, Tensor | None]:
    """x [N, C, H, W] -> (y [N, C, OH, OW], positions): of a max pool's winners, where they are wanted.

    A position is the place of a window's first maximum, row by row, uint8 where it fits.
    """
    if pool.kind == "average":
        # Exact sums and one division: whole numbers and halves are exact, so halves go to even.
        return F.avg_pool2d(x.float(), pool.kernel, pool.stride).round_().to(x.dtype), None
    places, bits = pool.kernel**2, (pool.kernel**2 - 1).bit_length()
    taps = _taps(_keys(x, pool.padding, bits), pool)
    best = next(taps).clone()
    for tap in taps:
        # A key counts the taps after it, so the first of equal codes is the largest.
        torch.maximum(best.add_(1), tap, out=best)
    positions = (places - 1 - (best & 2**bits - 1)).to(_position_dtype(places)) if want_positions else None
    return (best >> bits).to(x.dtype), positions


def backward(g: Tensor, pool: Pool, x_shape: torch.Size, positions: Tensor | None) -> Tensor:
    """g [N, C, OH, OW] -> grad_x: all of it to the winner, or an even share to each; windows that overlap add up."""
    p, (n, channels, height, width) = pool.padding, x_shape
    g = g / pool.kernel**2 if pool.kind == "average" else g
    if pool.kind == "average" and pool.kernel == height == width:
        return g.expand(x_shape)
    dx = g.new_zeros((n, height + 2 * p, width + 2 * p, channels)).permute(0, 3, 1, 2)
    for k, tap in enumerate(_taps(dx, pool)):
        tap.add_(g if positions is None else g * (positions == k))
    return dx[:, :, p : p + height, p : p + width]


def _position_dtype(places: int) -> torch.dtype:
    return torch.uint8 if places <= 256 else torch.int32


def _keys(x: Tensor, border: int, bits: int) -> Tensor:
    """x -> its codes above `bits` zero bits, bordered by what is one below the lowest code."""
    keys = x.to(torch.int16 if bits <= 7 else torch.int32) << bits
    return F.pad(keys, (border,) * 4, value=(Q_MIN - 1) * 2**bits)


def _taps(x: Tensor, pool: Pool) -> Iterator[Tensor]:
    """Views [N, C, OH, OW] of x, bordered: of every window its k-th code, row by row."""
    kernel, stride = pool.kernel, pool.stride
    rows, columns = ((extent - kernel) // stride * stride + 1 for extent in x.shape[2:])
    for i in range(kernel):
        for j in range(kernel):
            yield x[:, :, i : i + rows : stride, j : j + columns : stride]
