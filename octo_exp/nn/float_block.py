"""Layers that stay float: an fp32 convolution with its ReLU and pooling as one block, fp32 linear layers, bf16 ones.

The fp32 block keeps its input and a mask for the backward pass, nothing else. Sums of fp32 layers have one order,
whatever the number of threads.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from octo_exp.kernels import ops
from octo_exp.kernels.plain import float_gemm
from octo_exp.nn.activation import activate, activate_plainly, eager
from octo_exp.nn.become import become
from octo_exp.nn.layer_accounts import float_block
from octo_exp.nn.layer_parts import geometry_of
from octo_exp.workload import Account, Epilogue


class _FloatConv(torch.autograd.Function):
    """x, w, bias -> steps(conv(x, w) + bias); saves the mask, and of x and w what the gradients need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, block: "FloatConv2d") -> Tensor:
        """Compute the block's output."""
        y, mask = ops.backend(block.impl, x.device.type).float_conv2d(x, w, bias, block.geometry, block.steps)
        ctx.block, ctx.x_shape, ctx.w_shape = block, x.shape, w.shape
        needs_dx, needs_dw, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_dw else None, w if needs_dx else None, mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, w and bias."""
        x, w, mask = ctx.saved_tensors
        geometry, steps, backend = ctx.block.geometry, ctx.block.steps, ops.backend(ctx.block.impl, g.device.type)
        g = g.float().contiguous(memory_format=torch.channels_last)
        g = g if mask is None else backend.mask_gradient(g, mask, steps)
        dx = dw = None
        if ctx.needs_input_grad[1]:
            dw = backend.float_conv2d_grad_weight(x, (g, mask), steps, ctx.w_shape, geometry)
        if ctx.needs_input_grad[0]:
            size = geometry.output_size(*ctx.x_shape[2:], tuple(ctx.w_shape[2:]))
            whole = backend.spread(g, mask, steps, size) if steps is not None and steps.pool > 1 else g
            dx = conv2d_input(ctx.x_shape, w, whole, *geometry.options)
        return dx, dw, g.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None


class FloatConv2d(nn.Conv2d):
    """nn.Conv2d in fp32 that does the ReLU and pooling behind it (`steps`) in its own epilogue."""

    impl: str
    steps: Epilogue | None
    geometry: ops.ConvGeometry

    @classmethod
    def convert(cls, conv: nn.Conv2d, *, impl: str) -> "FloatConv2d":
        """Make a convolution with zero padding one of this class where it stands."""
        block = become(conv, cls)
        block.impl, block.steps, block.geometry = impl, None, geometry_of(conv, conv.padding)
        return block

    @eager
    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, float32; under autocast the product is autocast's, as in nn.Conv2d."""
        if x.dim() == 3:
            return self._forward(x.unsqueeze(0)).squeeze(0)
        return self._forward(x)

    def account(self, account: Account) -> None:
        """State what a call costs."""
        float_block(account, self)

    def _forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.numel() == 0:
            y = super().forward(x)
            return y if self.steps is None else activate_plainly(y, self.steps)
        if torch.is_autocast_enabled(x.device.type):
            y = super().forward(x)
            return y if self.steps is None else activate(y, self.steps, self.impl)
        out: Tensor = _FloatConv.apply(x.float(), self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return out


class _FloatLinear(torch.autograd.Function):
    """x [..., I], w [O, I], bias [O] or None -> x @ w^T + bias; saves of x and w what the gradients need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the output."""
        needs_dx, needs_dw, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_dw else None, w if needs_dx else None)
        y = float_gemm.matmul(x, w.t())
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, w and bias."""
        x, w = ctx.saved_tensors
        rows = g.flatten(0, -2)
        dx = None if w is None else float_gemm.matmul(g, w)
        dw = None if x is None else float_gemm.matmul(rows.t(), x.flatten(0, -2))
        return dx, dw, rows.sum(0) if ctx.needs_input_grad[2] else None


class FloatLinear(nn.Linear):
    """nn.Linear in fp32, its three GEMMs in an order that does not depend on the number of threads."""

    @eager
    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; under autocast the product is autocast's, as in nn.Linear."""
        if torch.is_autocast_enabled(x.device.type) or x.dim() < 2 or x.numel() == 0:
            return super().forward(x)
        out: Tensor = _FloatLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


class _Bf16(nn.Module):
    """Mixed into torch's layers: fp32 parameters and output, the product in bf16."""

    precision = "bf16"

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, float32."""
        with torch.autocast(x.device.type, torch.bfloat16):
            y: Tensor = super().forward(x)
            return y.float()

    def account(self, account: Account) -> None:
        """State what a call costs, under autocast or not."""
        account.make(account.multiply_in_bf16(self, out_bits=32))


class Bf16Conv2d(_Bf16, nn.Conv2d):
    """nn.Conv2d that multiplies in bf16."""


class Bf16Linear(_Bf16, nn.Linear):
    """nn.Linear that multiplies in bf16."""


def to_bf16(layer: nn.Module) -> nn.Module:
    """Make the nn.Conv2d or nn.Linear its bf16 form where it stands, and return it."""
    return become(layer, Bf16Conv2d if isinstance(layer, nn.Conv2d) else Bf16Linear)
