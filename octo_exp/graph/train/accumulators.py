"""Exact sums of int8 codes and weights, on the project's integer kernels.

Weights beyond int8 (the original release never clamps its masters) are split into two int8 digits, exactly.
"""

import torch
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.train.constants import ConvConstants
from octo_exp.kernels import ops

# Two digits of base 256, the low one of -128 to 127.
_LIMIT = 127 * 256 + 127


def weight_digits(w: Tensor) -> list[Tensor]:
    """w, whole numbers in float32 -> int8 digits, lowest first: w = sum_k digit_k * 256^k; one where w is int8.

    Raises UserError where two digits are too few: training has diverged.
    """
    low, high = (float(v) for v in w.detach().aminmax())
    if low >= -128 and high <= 127:
        return [w.to(torch.int8)]
    if not (low >= -_LIMIT and high <= _LIMIT):
        raise UserError(
            f"weights of {low:.3g} to {high:.3g} are far beyond int8: training has diverged; lower the learning rate"
        )
    upper = torch.floor((w + 128) / 256)
    return [(w - 256 * upper).to(torch.int8), upper.to(torch.int8)]


def accumulate(codes: Tensor, w: Tensor, c: ConvConstants) -> Tensor:
    """codes [N, C, H, W] int8, w [O, C/G, KH, KW] -> sums of (code - x_zero) * w, int32 (int64 for two digits)."""
    backend = ops.backend(ops.resolve_impl("auto", codes.device.type), codes.device.type)
    total = torch.zeros((), dtype=torch.int32, device=codes.device)
    for k, digit in enumerate(weight_digits(w)):
        acc = backend.int8_conv2d(codes, digit, c.geometry, pad_value=c.x_zero)
        # A code less its zero point is twice as large.
        acc = acc if w[0].numel() <= ops.MAX_K // 2 else acc.long()
        acc = acc - c.x_zero * digit.sum((1, 2, 3), dtype=acc.dtype).reshape(-1, 1, 1)
        total = total + (acc if k == 0 else acc.long() * 256**k)
    return total
