"""kernel=triton: the fused kernels; what has none here runs in plain torch on the device.

Every method gives the plain torch form's bits: sums are integers, products and sums of floats are rounded one by one.
"""

import torch
from torch import Tensor

from octo_exp.kernels.backend import Backend
from octo_exp.kernels.int8 import MAX_K, ConvGeometry, check_int8, dense_flat, has_row_scales
from octo_exp.kernels.plain import masks
from octo_exp.kernels.triton import conv, gemm
from octo_exp.kernels.triton.quantize import quantize_dense
from octo_exp.workload import Epilogue


def _is_relu_alone(steps: Epilogue | None) -> bool:
    return steps is not None and steps.relu and steps.pool == 1


class Triton(Backend):
    """As `Backend` says, on CUDA devices, and on a CPU by Triton's interpreter."""

    multiplier = "int8 (Triton)"

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, int32."""
        return gemm.multiply(a, b)

    def quantize(
        self,
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
        """Of dense float32, with a scale a tensor or one a row. Nothing waits for the device."""
        t = t.detach()
        scalars = all(v is None or v.dim() == 0 for v in (zero_point, low, high))
        known = dense_flat(t) is not None and t.dtype == torch.float32 and scalars
        if not known or (scale.dim() > 0 and not has_row_scales(t, scale)):
            return super().quantize(t, scale, zero_point, q_min=q_min, q_max=q_max, low=low, high=high, seed=seed)
        return quantize_dense(t, scale, zero_point, (q_min, q_max), low, high, seed)

    def scale_rows(self, acc: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        """Of int32."""
        form = gemm.scale_rows if acc.dtype == torch.int32 else super().scale_rows
        return form(acc, scale, offset)

    def _activated(self, y: Tensor, steps: Epilogue | None) -> tuple[Tensor, Tensor | None]:
        """y, cut already where ReLU is all there is -> (activated y, mask)."""
        if _is_relu_alone(steps):
            return y, masks.pack_bits(masks.passes(y.permute(0, 2, 3, 1) if y.dim() == 4 else y))
        return self._finished(y, steps)

    def matmul_scaled(
        self, a: Tensor, b: Tensor, scale: Tensor, offset: Tensor | None, steps: Epilogue | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Of sums that fit int32."""
        if a.shape[1] > MAX_K:
            return super().matmul_scaled(a, b, scale, offset, steps)
        check_int8(a=a, b=b)
        return self._activated(gemm.multiply(a, b, scale, offset, relu=_is_relu_alone(steps)), steps)

    def conv2d_scaled(
        self,
        x: Tensor,
        w: Tensor,
        geometry: ConvGeometry,
        *,
        pad_value: Tensor | int,
        scale: Tensor,
        offset: Tensor | None,
        steps: Epilogue | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Of one group."""
        if not geometry.can_fuse(x, w[0].numel()):
            return super().conv2d_scaled(x, w, geometry, pad_value=pad_value, scale=scale, offset=offset, steps=steps)
        check_int8(x=x, w=w)
        relu = _is_relu_alone(steps)
        return self._activated(conv.conv2d(x, w, geometry, pad_value, scale, offset, relu=relu), steps)

    def conv2d_grad_input_scaled(
        self, g: Tensor, w: Tensor, size: tuple[int, int], geometry: ConvGeometry, *, scale: Tensor
    ) -> Tensor:
        """Of one group."""
        if not geometry.can_fuse(g, w.numel() // w.shape[1]):
            return super().conv2d_grad_input_scaled(g, w, size, geometry, scale=scale)
        check_int8(g=g, w=w)
        return conv.conv2d_grad_input(g, w, size, geometry, scale)

    def conv2d_grad_weight_scaled(
        self,
        x: Tensor,
        g: Tensor,
        kernel: tuple[int, int],
        geometry: ConvGeometry,
        *,
        pad_value: Tensor | int,
        scale: Tensor,
        offset: Tensor | None,
    ) -> Tensor:
        """Of one group, where the sum over N*OH*OW fits int32. Channels-last."""
        if not geometry.can_fuse(g, g.shape[0] * g.shape[2] * g.shape[3]):
            return super().conv2d_grad_weight_scaled(
                x, g, kernel, geometry, pad_value=pad_value, scale=scale, offset=offset
            )
        check_int8(x=x, g=g)
        acc = conv.conv2d_grad_weight(x, g, kernel, geometry, pad_value)
        return self.scale_rows(acc, scale, offset).reshape(g.shape[1], *kernel, x.shape[1]).permute(0, 3, 1, 2)
