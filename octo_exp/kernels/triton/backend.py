"""kernel=triton: the fused kernels; what has none here runs in plain torch on the device.

Every method gives the plain torch form's bits: sums are integers, products and sums of floats are rounded one by one.
"""

import torch
from torch import Tensor

from octo_exp.kernels.backend import Backend
from octo_exp.kernels.finish import Finish, Limits, Masked, Pad
from octo_exp.kernels.int8 import MAX_K, ConvGeometry, check_int8, dense_flat, has_row_scales
from octo_exp.kernels.plain import masks
from octo_exp.kernels.triton import conv, gemm
from octo_exp.kernels.triton.quantize import quantize_dense


class Triton(Backend):
    """As `Backend` says, on CUDA devices, and on a CPU by Triton's interpreter."""

    multiplier = "int8 (Triton)"

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, int32."""
        return gemm.multiply(a, b)

    def quantize(self, t: Tensor, scale: Tensor, zero_point: Tensor, limits: Limits) -> Tensor:
        """Of dense float32, with a scale a tensor or one a row. Nothing waits for the device."""
        t = t.detach()
        scalars = all(v is None or v.dim() == 0 for v in (zero_point, limits.low, limits.high))
        known = dense_flat(t) is not None and t.dtype == torch.float32 and scalars
        if not known or (scale.dim() > 0 and not has_row_scales(t, scale)):
            return super().quantize(t, scale, zero_point, limits)
        return quantize_dense(t, scale, zero_point, limits)

    def scale_rows(self, acc: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        """Of int32."""
        form = gemm.scale_rows if acc.dtype == torch.int32 else super().scale_rows
        return form(acc, scale, offset)

    def _activated(self, y: Tensor, finish: Finish) -> Masked:
        """y, cut already where ReLU is all there is -> (activated y, mask)."""
        if finish.is_relu:
            return y, masks.pack_bits(masks.passes(y.permute(0, 2, 3, 1) if y.dim() == 4 else y))
        return self._finished(y, finish.steps)

    def matmul_scaled(self, a: Tensor, b: Tensor, finish: Finish) -> Masked:
        """Of sums that fit int32."""
        if a.shape[1] > MAX_K:
            return super().matmul_scaled(a, b, finish)
        check_int8(a=a, b=b)
        return self._activated(gemm.multiply(a, b, finish), finish)

    def conv2d_scaled(self, x: Tensor, w: Tensor, geometry: ConvGeometry, pad_value: Pad, finish: Finish) -> Masked:
        """Of one group."""
        if not geometry.can_fuse(x, w[0].numel()):
            return super().conv2d_scaled(x, w, geometry, pad_value, finish)
        check_int8(x=x, w=w)
        return self._activated(conv.conv2d(x, w, geometry, pad_value, finish), finish)

    def conv2d_grad_input_scaled(
        self, g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, *, scale: Tensor
    ) -> Tensor:
        """Of one group."""
        if not geometry.can_fuse(g, w.numel() // w.shape[1]):
            return super().conv2d_grad_input_scaled(g, w, size, geometry, scale=scale)
        check_int8(g=g, w=w)
        return conv.conv2d_grad_input(g, w, size, geometry, scale)

    def conv2d_grad_weight_scaled(
        self, x: Tensor, g: Tensor, kernel: tuple[int, int], geometry: ConvGeometry, pad_value: Pad, finish: Finish
    ) -> Tensor:
        """Of one group, where the sum over N*OH*OW fits int32. Channels-last."""
        if not geometry.can_fuse(g, g.shape[0] * g.shape[2] * g.shape[3]):
            return super().conv2d_grad_weight_scaled(x, g, kernel, geometry, pad_value, finish)
        check_int8(x=x, g=g)
        acc = conv.conv2d_grad_weight(x, g, kernel, geometry, pad_value)
        return self.scale_rows(acc, *finish[:2]).reshape(g.shape[1], *kernel, x.shape[1]).permute(0, 3, 1, 2)
