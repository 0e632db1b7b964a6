"""The CPU path's compiled steps, by the names that `fused` looks for."""

import torch
from torch import Tensor

from octo_exp.kernels import torch_int8
from octo_exp.kernels.cpu_conv import (
    conv2d_grad_input_scaled,
    conv2d_grad_weight_scaled,
    conv2d_scaled,
    float_conv2d_grad_weight,
)
from octo_exp.kernels.cpu_elementwise import (
    activate,
    finish,
    mask_gradient,
    outputs,
    per_channel,
    quantize,
    scale_rows,
    spread,
)
from octo_exp.kernels.epilogue import Epilogue

__all__ = [
    "activate",
    "conv2d_grad_input_scaled",
    "conv2d_grad_weight_scaled",
    "conv2d_scaled",
    "float_conv2d_grad_weight",
    "mask_gradient",
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
