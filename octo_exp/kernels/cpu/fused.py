"""The CPU path's compiled steps, by the names that `fused` looks for."""

import torch
from torch import Tensor

from octo_exp.kernels.cpu.conv import (
    conv2d_grad_input_scaled,
    conv2d_grad_weight_scaled,
    conv2d_scaled,
    float_conv2d_grad_weight,
)
from octo_exp.kernels.cpu.elementwise import (
    activate,
    finish,
    mask_gradient,
    outputs,
    per_channel,
    quantize,
    scale_rows,
    scale_rows_into,
    spread,
)
from octo_exp.kernels.plain import torch_int8
from octo_exp.workload import Epilogue

# Accumulators of a weight gradient that exist at a time: the whole would double its memory, and its page faults.
ACCUMULATOR_BYTES = 8 * 2**20

__all__ = [
    "activate",
    "conv2d_grad_input_scaled",
    "conv2d_grad_weight_scaled",
    "conv2d_scaled",
    "float_conv2d_grad_weight",
    "mask_gradient",
    "matmul_grad_weight",
    "matmul_scaled",
    "quantize",
    "scale_rows",
    "spread",
]


def matmul_scaled(
    a: Tensor, b: Tensor, scale: Tensor, offset: Tensor | None, epilogue: Epilogue | None
) -> tuple[Tensor, Tensor | None]:
    """a [M, K], b [K, N] int8, scale scalar or [N], offset [N] -> (activated a@b*scale + offset, mask)."""
    shape = torch.Size((a.shape[0], b.shape[1]))
    out, mask = outputs(shape, epilogue)
    finish(torch_int8.matmul(a, b), per_channel(scale, b.shape[1]), offset, shape, epilogue, out, mask)
    return out, mask


def matmul_grad_weight(g: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """g [M, O], x [M, I] int8, M <= MAX_K, offset [O] -> g^T @ x * scale + offset, [O, I], some rows at a time."""
    o, i = g.shape[1], x.shape[1]
    rows = max(1, ACCUMULATOR_BYTES // max(1, 4 * i))
    out = torch.empty((o, i))
    buffer = torch.empty((min(rows, o), i), dtype=torch.int32)
    for start in range(0, o, rows):
        part = slice(start, min(o, start + rows))
        acc = torch_int8.matmul(g[:, part].t(), x, buffer[: part.stop - start])
        scale_rows_into(acc, scale, None if offset is None else offset[part], out[part])
    return out
