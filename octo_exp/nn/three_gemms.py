"""The three GEMMs of a linear or convolution layer, as integers and as floats, behind one face.

Both classes take x [N, ...], w and g in the layer's own shapes and return tensors in them, float32. Integer methods
multiply int8 codes exactly and scale the accumulator; float methods multiply in the operands' own dtype.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from octo_exp.kernels import ops
from octo_exp.kernels.plain import float_gemm
from octo_exp.workload import Epilogue


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmOp:
    """What both share: the kernel implementation and the sums that zero points need."""

    impl: str

    def backend(self, t: Tensor) -> ops.Backend:
        """Return the kernels of the device on which t lies."""
        return ops.backend(self.impl, t.device.type)

    def weight_sums(self, w: Tensor) -> Tensor:
        """[O, ...] int8 -> [O] int64, exact: the sum of every output channel's codes."""
        return self.row_sums(w.flatten(1) if w.dim() == 2 else w.permute(0, 2, 3, 1).flatten(1))

    def row_sums(self, t: Tensor) -> Tensor:
        """[M, K] int8 -> [M] int64, exact: a GEMM with ones is faster than a widening reduction."""
        ones = torch.ones((t.shape[1], 1), dtype=torch.int8, device=t.device)
        return self.backend(t).int8_matmul(t, ones).flatten().to(torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearOp(GemmOp):
    """x [..., I], w [O, I] -> [..., O]; leading dimensions are rows of the GEMM."""

    channel_dim: ClassVar[int] = -1

    @staticmethod
    def rows(t: Tensor) -> Tensor:
        """[..., C] -> [M, C]: the GEMM's view of an activation or gradient."""
        return t.reshape(-1, t.shape[-1])

    @staticmethod
    def per_channel(v: Tensor) -> Tensor:
        """[C] -> what broadcasts against [..., C]."""
        return v

    @staticmethod
    def layout(t: Tensor) -> Tensor:
        """Return t in the memory layout the kernels want."""
        return t.contiguous()

    def output(
        self,
        x: Tensor,
        w: Tensor,
        *,
        pad_value: Tensor | int,
        scale: Tensor,
        offset: Tensor | None,
        steps: Epilogue | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(activated x @ w^T * scale + offset, mask); nothing is padded, so `pad_value` is not used."""
        y, mask = self.backend(x).matmul_scaled(self.rows(x), w.t(), scale, offset, steps)
        # No view, which an in-place operation may not change.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], w.shape[0])), mask

    def grad_input(self, g: Tensor, w: Tensor, x_shape: torch.Size, *, scale: Tensor) -> Tensor:
        """Return g @ w * scale, [..., I]."""
        return self.backend(g).matmul_scaled(self.rows(g), w, scale, None)[0].reshape(x_shape)

    def grad_weight(
        self,
        g: Tensor,
        x: Tensor,
        w_shape: torch.Size,
        *,
        pad_value: Tensor | int,
        scale: Tensor,
        offset: Tensor | None,
    ) -> Tensor:
        """Return g^T @ x * scale + offset (one a row), [O, I]."""
        return self.backend(g).matmul_grad_weight(self.rows(g), self.rows(x), scale, offset)

    def float_output(self, x: Tensor, w: Tensor) -> Tensor:
        """Return x @ w^T, [..., O]."""
        return float_gemm.matmul(x, w.t())

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """Return g @ w, [..., I]."""
        return float_gemm.matmul(g, w)

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """Return g^T @ x, [O, I]."""
        return float_gemm.matmul(self.rows(g).t(), self.rows(x))

    def output_size(self, x_shape: torch.Size, w_shape: torch.Size) -> tuple[int, int]:
        """Return (1, 1): a linear layer's output has no positions to pool."""
        return 1, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvOp(GemmOp):
    """x [N, C, H, W], w [O, C/G, KH, KW] -> [N, O, OH, OW]; tensors are channels-last in memory."""

    geometry: ops.ConvGeometry
    channel_dim: ClassVar[int] = 1

    @staticmethod
    def rows(t: Tensor) -> Tensor:
        """[N, C, H, W] -> [N*H*W, C]: a view when t is channels-last."""
        return t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])

    @staticmethod
    def per_channel(v: Tensor) -> Tensor:
        """[C] -> [C, 1, 1]: what broadcasts against [N, C, H, W]; [C, H, W] as it is."""
        return v.reshape(-1, 1, 1) if v.dim() == 1 else v

    @staticmethod
    def layout(t: Tensor) -> Tensor:
        """Return t in the memory layout the kernels want."""
        return t.contiguous(memory_format=torch.channels_last)

    def output(
        self,
        x: Tensor,
        w: Tensor,
        *,
        pad_value: Tensor | int,
        scale: Tensor,
        offset: Tensor | None,
        steps: Epilogue | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(activated conv(x, w) * scale + offset, mask)."""
        return self.backend(x).conv2d_scaled(
            x, w, self.geometry, pad_value=pad_value, scale=scale, offset=offset, steps=steps
        )

    def grad_input(self, g: Tensor, w: Tensor, x_shape: torch.Size, *, scale: Tensor) -> Tensor:
        """Return the transposed convolution of g, times scale."""
        size = (x_shape[2], x_shape[3])
        return self.backend(g).conv2d_grad_input_scaled(g, w, size, self.geometry, scale=scale)

    def grad_weight(
        self,
        g: Tensor,
        x: Tensor,
        w_shape: torch.Size,
        *,
        pad_value: Tensor | int,
        scale: Tensor,
        offset: Tensor | None,
    ) -> Tensor:
        """Return the correlation of x with g, times scale, plus offset (one a channel), [O, C/G, KH, KW]."""
        kernel = (w_shape[2], w_shape[3])
        return self.backend(x).conv2d_grad_weight_scaled(
            x, g, kernel, self.geometry, pad_value=pad_value, scale=scale, offset=offset
        )

    def _float_args(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.geometry.stride, self.geometry.padding, self.geometry.dilation, self.geometry.groups

    def float_output(self, x: Tensor, w: Tensor) -> Tensor:
        """Return conv(x, w)."""
        return F.conv2d(x, w, None, *self._float_args())

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """Return the gradient of conv with respect to x."""
        return conv2d_input(x_shape, w, g, *self._float_args())

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """Return the gradient of conv with respect to w."""
        return conv2d_weight(x, w_shape, g, *self._float_args())

    def output_size(self, x_shape: torch.Size, w_shape: torch.Size) -> tuple[int, int]:
        """Return (OH, OW) of the convolution, before any pooling."""
        return self.geometry.output_size(x_shape[2], x_shape[3], (w_shape[2], w_shape[3]))


Op = LinearOp | ConvOp
