"""The three GEMMs of a layer, each in its own precision, and the epilogue fused to the first: one autograd function.

output       y  = epilogue(x^ (*) w^ + offset)   grad_input  dx = g^ (*) w^       grad_weight  dw = g^ (*) x^ + slope
where ^ means quantised (int8, fake) or as it is (fp32, bf16), the epilogue is ReLU and pooling or nothing, and g is the
gradient before it. dx and dw are the gradients of x^ and w^: what becomes of them at x and w is the quantisers' rule.
What a backward GEMM needs is saved in the form in which it is used: int8 codes and scales where it is quantised, bits
and int8 places for the epilogue, all through save_for_backward; codes of the weight are made again from the weight.

Scales of a tensor, and of w's channels in the output, are multiplied in by the kernels, others in a pass of their own.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from octo_exp.kernels import ops
from octo_exp.kernels.finish import Finish, Masked, Pad
from octo_exp.kernels.plain import float_gemm
from octo_exp.nn.contract import Codes, Layer, Operand
from octo_exp.quant.quantizer import QTensor
from octo_exp.workload import Epilogue


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmOp:
    """What both kinds share: the kernel implementation, and the sums that zero points need.

    x [N, ...], w and g have the layer's own shapes, and so have the results, float32. Integer methods multiply int8
    codes exactly and scale the accumulator; float methods multiply in the operands' own dtype.
    """

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

    def output(self, x: Tensor, w: Tensor, pad_value: Pad, finish: Finish) -> Masked:
        """(activated x @ w^T * scale + offset, mask); nothing is padded, so `pad_value` is not used."""
        y, mask = self.backend(x).matmul_scaled(self.rows(x), w.t(), finish)
        # No view, which an in-place operation may not change.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], w.shape[0])), mask

    def grad_input(self, g: Tensor, w: Tensor, x_shape: torch.Size, *, scale: Tensor) -> Tensor:
        """Return g @ w * scale, [..., I]."""
        return self.backend(g).matmul_scaled(self.rows(g), w, Finish(scale))[0].reshape(x_shape)

    def grad_weight(self, g: Tensor, x: Tensor, w_shape: torch.Size, pad_value: Pad, finish: Finish) -> Tensor:
        """Return g^T @ x * scale + offset (one a row), [O, I]."""
        return self.backend(g).matmul_grad_weight(self.rows(g), self.rows(x), finish)

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

    def output(self, x: Tensor, w: Tensor, pad_value: Pad, finish: Finish) -> Masked:
        """(activated conv(x, w) * scale + offset, mask)."""
        return self.backend(x).conv2d_scaled(x, w, self.geometry, pad_value, finish)

    def grad_input(self, g: Tensor, w: Tensor, x_shape: torch.Size, *, scale: Tensor) -> Tensor:
        """Return the transposed convolution of g, times scale."""
        size = (x_shape[2], x_shape[3])
        return self.backend(g).conv2d_grad_input_scaled(g, w, size, self.geometry, scale=scale)

    def grad_weight(self, g: Tensor, x: Tensor, w_shape: torch.Size, pad_value: Pad, finish: Finish) -> Tensor:
        """Return the correlation of x with g, times scale, plus offset (one a channel), [O, C/G, KH, KW]."""
        kernel = (w_shape[2], w_shape[3])
        return self.backend(x).conv2d_grad_weight_scaled(x, g, kernel, self.geometry, pad_value, finish)

    def float_output(self, x: Tensor, w: Tensor) -> Tensor:
        """Return conv(x, w)."""
        return F.conv2d(x, w, None, *self.geometry.options)

    def float_grad_input(self, g: Tensor, w: Tensor, x_shape: torch.Size) -> Tensor:
        """Return the gradient of conv with respect to x."""
        dx: Tensor = conv2d_input(x_shape, w, g, *self.geometry.options)
        return dx

    def float_grad_weight(self, g: Tensor, x: Tensor, w_shape: torch.Size) -> Tensor:
        """Return the gradient of conv with respect to w."""
        dw: Tensor = conv2d_weight(x, w_shape, g, *self.geometry.options)
        return dw

    def output_size(self, x_shape: torch.Size, w_shape: torch.Size) -> tuple[int, int]:
        """Return (OH, OW) of the convolution, before any pooling."""
        return self.geometry.output_size(x_shape[2], x_shape[3], (w_shape[2], w_shape[3]))


Op = LinearOp | ConvOp


def _as_float(t: Tensor, q: QTensor | None, precision: str) -> Tensor:
    if precision == "bf16":
        return t.bfloat16()
    return q.dequantize() if precision == "fake" and q is not None else t


def _of_tensors(*scales: Tensor) -> Tensor:
    """Return the product of the scalars among them."""
    whole = [scale for scale in scales if scale.dim() == 0]
    return math.prod(whole[1:], start=whole[0]) if whole else scales[0].new_ones(())


def product_scale(xq: QTensor, wq: QTensor) -> Tensor:
    """Return s_w, times s_x where that is one number: a scalar, or [O] where w has a scale a channel."""
    scale = wq.scale if xq.scale.dim() else xq.scale * wq.scale
    return scale.flatten() if scale.dim() else scale


def cross_term(xq: QTensor, wq: QTensor, zero_point: Tensor, code_sums: Tensor) -> Tensor:
    """Return -s_x*s_w*z_x*sum_k(q_w) [O], for sum_k (q_x - z) q_w = acc - z * sum_k q_w; float64 keeps it exact."""
    return -(product_scale(xq, wq).double() * (zero_point * code_sums)).float()


def compute_output(
    layer: Layer[Op], epilogue: Epilogue | None, x: Tensor, w: Tensor, offset: Tensor | None, codes: Codes
) -> Masked:
    """x, w -> (y float32, mask of the epilogue). For int8, `offset` holds the zero point's cross term already."""
    op, precision, xq, wq = layer.op, layer.scheme.output, codes.x, codes.w
    if precision == "int8":
        xq, wq = cast(QTensor, xq), cast(QTensor, wq)
        pad, scale = 0 if xq.zero_point is None else xq.zero_point, product_scale(xq, wq)
        if not xq.scale.dim():
            return op.output(xq.values, wq.values, pad, Finish(scale, offset, epilogue))
        # One a sample or a row: a factor of all its outputs.
        y = op.output(xq.values, wq.values, pad, Finish(scale))[0].mul_(xq.scale)
    else:
        y = op.float_output(_as_float(x, xq, precision), _as_float(w, wq, precision)).float()
    y = y if offset is None else y + op.per_channel(offset)
    return (y, None) if epilogue is None else op.backend(y).activate(y, epilogue)


def compute_grad_input(layer: Layer[Op], g: Tensor, gq: QTensor | None, w: Operand, x_shape: torch.Size) -> Tensor:
    """g, w (QTensor, or float) -> dx. gq is g quantised, with w's per-channel scale already multiplied in."""
    op, precision = layer.op, layer.scheme.grad_input
    if precision != "int8":
        weight = w.dequantize() if isinstance(w, QTensor) else _as_float(w, None, precision)
        return op.float_grad_input(_as_float(g, gq, precision), weight, x_shape).float()
    gq, w = cast(QTensor, gq), cast(QTensor, w)
    dx = op.grad_input(gq.values, w.values, x_shape, scale=_of_tensors(gq.scale, w.scale))
    dx = dx.mul_(gq.scale) if gq.scale.dim() else dx
    # Every group has the same scales.
    groups = x_shape[op.channel_dim] // w.scale.numel()
    return dx.mul_(op.per_channel(w.scale.flatten().repeat(groups))) if w.scale.dim() else dx


def compute_grad_weight(
    layer: Layer[Op], g: Tensor, gq: QTensor | None, x: Operand, w_shape: torch.Size, slope: Tensor | None
) -> Tensor:
    """g, x (QTensor, or float), slope [O] or None -> dw, float32."""
    op, precision, ones = layer.op, layer.scheme.grad_weight, (1,) * (len(w_shape) - 1)
    if precision != "int8":
        operand = x.dequantize() if isinstance(x, QTensor) else _as_float(x, None, precision)
        dw = op.float_grad_weight(_as_float(g, gq, precision), operand, w_shape).float()
        return dw if slope is None else dw + slope.reshape(-1, *ones)
    gq, x = cast(QTensor, gq), cast(QTensor, x)
    if x.zero_point is not None:
        scale = (gq.scale * x.scale).flatten() if gq.scale.dim() else gq.scale * x.scale
        cross = -(scale.double() * (x.zero_point * op.row_sums(op.rows(gq.values).t()))).float()
        slope = cross if slope is None else cross + slope
    pad, scale = 0 if x.zero_point is None else x.zero_point, _of_tensors(gq.scale, x.scale)
    if gq.scale.dim() == x.scale.dim() == 0:
        return op.grad_weight(gq.values, x.values, w_shape, pad, Finish(scale, slope))
    dw = op.grad_weight(gq.values, x.values, w_shape, pad, Finish(scale))
    dw = dw.mul_(gq.scale.reshape(-1, *ones)) if gq.scale.dim() else dw
    if x.scale.dim():
        # Of each group its own input channels.
        groups = x.scale.numel() // w_shape[1]
        columns = x.scale.reshape(groups, 1, -1).expand(-1, w_shape[0] // groups, -1)
        dw.mul_(columns.reshape(w_shape[0], w_shape[1], *ones[1:]))
    return dw if slope is None else dw.add_(slope.reshape(-1, *ones))


class QuantGemm(torch.autograd.Function):
    """x, w, offset, layer, epilogue, codes -> y. Differentiable in x and w as their codes stand for them, in offset.

    offset ([O], [O, OH, OW] or None) is added before the epilogue; codes.slope (of its shape, or None) is its
    derivative with respect to sum_k(w), which reaches the weight's gradient without a tensor of the weight's size.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, offset: Tensor | None, layer: Layer[Op], epilogue: Epilogue | None, codes: Codes
    ) -> Tensor:
        """Compute the output GEMM and save what the backward GEMMs use."""
        y, mask = compute_output(layer, epilogue, x, w, offset, codes)
        ctx.layer, ctx.epilogue, ctx.x_shape, ctx.w_shape = layer, epilogue, x.shape, w.shape
        ctx.offset_shape = None if offset is None else offset.shape
        needs_dx, needs_dw, *_ = ctx.needs_input_grad
        weight = layer.saved_weight(w, codes.w) if needs_dx else (None, None)
        ctx.save_for_backward(*weight, *(layer.saved_input(x, codes.x) if needs_dw else (None,) * 3), mask, codes.slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the two backward GEMMs; the gradient is quantised once where both can share it."""
        layer = ctx.layer
        w, w_scale, x, x_scale, x_zero, mask, slope = ctx.saved_tensors
        gradient = layer.gradient(g, mask, ctx.epilogue, layer.op.output_size(ctx.x_shape, ctx.w_shape))
        dx = dw = offset = None
        if ctx.offset_shape is not None and (ctx.needs_input_grad[2] or slope is not None):
            offset = gradient.sum_to(ctx.offset_shape)
        if ctx.needs_input_grad[1]:
            slopes = None if slope is None else (slope * offset).reshape(ctx.w_shape[0], -1).sum(1)
            operand = x if x_scale is None else QTensor(values=x, scale=x_scale, zero_point=x_zero)
            g, gq, _ = gradient.operands("grad_weight")
            dw = compute_grad_weight(layer, g, gq, operand, ctx.w_shape, slopes)
        if ctx.needs_input_grad[0]:
            g, gq, weight = gradient.operands("grad_input", layer.weight_again(w, w_scale))
            dx = compute_grad_input(layer, g, gq, weight, ctx.x_shape)
        return dx, dw, offset, None, None, None
