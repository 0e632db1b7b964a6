"""The GPU path: what `fused` calls for `kernel=triton`; what is absent here runs in plain torch on the device.

Every function gives the plain torch form's bits: sums are integers, products and sums of floats are rounded one by one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.kernels.geometry import MAX_K, ConvGeometry
from octo_exp.kernels.plain import masks
from octo_exp.kernels.triton import conv, gemm
from octo_exp.kernels.triton.gemm import scale_rows
from octo_exp.kernels.triton.quantize import quantize
from octo_exp.workload import Epilogue

__all__ = [
    "conv2d_grad_input_scaled",
    "conv2d_grad_weight_scaled",
    "conv2d_scaled",
    "matmul_scaled",
    "quantize",
    "scale_rows",
]


def _is_relu_alone(steps: Epilogue | None) -> bool:
    return steps is not None and steps.relu and steps.pool == 1


def _activated(y: Tensor, steps: Epilogue | None) -> tuple[Tensor, Tensor | None]:
    """y, cut already where ReLU is all there is -> (activated y, mask)."""
    if steps is None:
        return y, None
    if _is_relu_alone(steps):
        return y, masks.pack_bits(masks.passes(y.permute(0, 2, 3, 1) if y.dim() == 4 else y))
    return masks.activate(y, steps)


def matmul_scaled(
    a: Tensor, b: Tensor, scale: Tensor, offset: Tensor | None, steps: Epilogue | None
) -> tuple[Tensor, Tensor | None]:
    """a [M, K], b [K, N] int8, scale scalar or [N], offset [N] -> (activated a@b*scale + offset, mask)."""
    return _activated(gemm.matmul_scaled(a, b, scale, offset, relu=_is_relu_alone(steps)), steps)


def conv2d_scaled(
    x: Tensor,
    w: Tensor,
    geometry: ConvGeometry,
    pad_value: Tensor | int,
    scale: Tensor,
    offset: Tensor | None,
    steps: Epilogue | None,
) -> tuple[Tensor, Tensor | None]:
    """x [N, C, H, W], w [O, C, KH, KW], one group: see `fused.int8_conv2d_scaled`.

    Float operands, of layers that stay fp32, go to torch's own convolution: offset is then the bias, scale 1.
    """
    if x.dtype != torch.int8:
        y = F.conv2d(x, w, offset, geometry.stride, geometry.padding, geometry.dilation)
        return (y, None) if steps is None else masks.activate(y, steps)
    relu = _is_relu_alone(steps)
    return _activated(conv.conv2d(x, w, geometry, pad_value, scale, offset, relu=relu), steps)


def conv2d_grad_input_scaled(
    g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, scale: Tensor
) -> Tensor:
    """g [N, O, OH, OW], w [O, C, KH, KW] int8, one group -> dx [N, C, H, W] float32, channels-last."""
    return conv.conv2d_grad_input(g, w, size, geometry, scale)


def conv2d_grad_weight_scaled(
    x: Tensor,
    g: Tensor,
    kernel: tuple[int, int],
    geometry: ConvGeometry,
    pad_value: Tensor | int,
    scale: Tensor,
    offset: Tensor | None,
) -> Tensor | None:
    """x [N, C, H, W], g [N, O, OH, OW] int8, one group, offset [O] -> dw [O, C, KH, KW] float32, channels-last.

    None where the sum over N*OH*OW may pass int32.
    """
    if g.numel() // g.shape[1] > MAX_K:
        return None
    acc = conv.conv2d_grad_weight(x, g, kernel, geometry, pad_value)
    return scale_rows(acc, scale, offset).reshape(g.shape[1], *kernel, x.shape[1]).permute(0, 3, 1, 2)
