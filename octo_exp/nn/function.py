"""The autograd function with the three GEMMs, each in its own precision.

output       y  = x^ (*) w^ + offset           grad_input  dx = g^ (*) w^        grad_weight  dw = g^ (*) x^
where ^ means quantised (int8, fake) or as it is (fp32, bf16). Rounding is straight-through; the gradient of x passes
inside the range it was quantised with. What a backward GEMM needs is saved in the form in which it is used: int8 codes
and scales where it is quantised, through save_for_backward.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octo_exp.kernels.api import scale_accumulator
from octo_exp.quant.qtensor import QTensor

if TYPE_CHECKING:
    from octo_exp.nn.layers import QuantLayer

# (layer, operand, float tensor, its quantised form): what a probe is called with.
Observer = Callable[["QuantLayer", str, Tensor, QTensor], None]


def _as_float(t: Tensor, q: QTensor | None, precision: str) -> Tensor:
    if precision == "bf16":
        return t.bfloat16()
    return q.dequantize() if precision == "fake" and q is not None else t


def compute_output(
    layer: "QuantLayer", x: Tensor, w: Tensor, offset: Tensor | None, xq: QTensor | None, wq: QTensor | None
) -> Tensor:
    """x [.., I], w -> y [.., O], float32. For int8, `offset` holds the zero point's cross term already."""
    precision = layer.scheme.output
    if precision != "int8":
        y = layer.op.float_output(_as_float(x, xq, precision), _as_float(w, wq, precision)).float()
        return y if offset is None else y + layer.op.per_channel(offset)
    acc = layer.op.int_output(xq.values, wq.values, 0 if xq.zero_point is None else xq.zero_point)
    # Not a view of the rows: an in-place ReLU may follow.
    y = layer.op.empty(layer.op.output_shape(x.shape, w.shape), x.device)
    scale_accumulator(acc, product_scale(xq, wq), offset, out=layer.op.rows(y))
    return y


def product_scale(xq: QTensor, wq: QTensor) -> Tensor:
    """Return s_x * s_w: a scalar, or [O] where w has a scale a channel."""
    scale = xq.scale * wq.scale
    return scale.flatten() if wq.per_channel else scale


def cross_term(xq: QTensor, wq: QTensor, code_sums: Tensor) -> Tensor:
    """Return -s_x*s_w*z_x*sum_k(q_w) [O], for sum_k (q_x - z) q_w = acc - z * sum_k q_w; float64 keeps it exact."""
    return -(product_scale(xq, wq).double() * (xq.zero_point * code_sums)).float()


def compute_grad_input(layer: "QuantLayer", g: Tensor, gq: QTensor | None, w: Any, x_shape: torch.Size) -> Tensor:
    """g [.., O], w (QTensor, or float) -> dx. gq is g quantised, with w's per-channel scale already multiplied in."""
    precision = layer.scheme.grad_input
    if precision == "int8":
        scale = gq.scale if w.per_channel else gq.scale * w.scale
        acc = layer.op.int_grad_input(gq.values, w.values, x_shape)
        dx = layer.op.empty(x_shape, g.device)
        scale_accumulator(acc, scale, None, out=layer.op.rows(dx))
        return dx
    weight = w.dequantize() if isinstance(w, QTensor) else _as_float(w, None, precision)
    return layer.op.float_grad_input(_as_float(g, gq, precision), weight, x_shape).float()


def compute_grad_weight(layer: "QuantLayer", g: Tensor, gq: QTensor | None, x: Any, w_shape: torch.Size) -> Tensor:
    """g [.., O], x (QTensor, or float) -> dw, float32."""
    precision = layer.scheme.grad_weight
    if precision == "int8":
        zero, scale = x.zero_point, gq.scale * x.scale
        dw = layer.op.int_grad_weight(gq.values, x.values, w_shape, 0 if zero is None else zero) * scale
        if zero is not None:
            sums = layer.op.row_sums(layer.op.rows(gq.values).t())
            dw -= (scale.double() * (zero * sums)).float().reshape(-1, *[1] * (len(w_shape) - 1))
        return dw
    operand = x.dequantize() if isinstance(x, QTensor) else _as_float(x, None, precision)
    return layer.op.float_grad_weight(_as_float(g, gq, precision), operand, w_shape).float()


class QuantGemm(torch.autograd.Function):
    """x, w, offset [O] (or None), layer, xq, wq -> y. Differentiable in x, w and offset."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        offset: Tensor | None,
        layer: "QuantLayer",
        xq: QTensor | None,
        wq: QTensor | None,
    ) -> Tensor:
        """Compute the output GEMM and save what the backward GEMMs use."""
        y = compute_output(layer, x, w, offset, xq, wq)
        QuantGemm._save(ctx, x, w, layer, xq, wq)
        return y

    @staticmethod
    def _save(ctx: Any, x: Tensor, w: Tensor, layer: "QuantLayer", xq: QTensor | None, wq: QTensor | None) -> None:
        ctx.layer, ctx.x_shape, ctx.w_shape = layer, x.shape, w.shape
        saved: list[Tensor | None] = [None] * 7
        if ctx.needs_input_grad[0]:
            quantized = wq is not None and layer.scheme.grad_input in ("fake", "int8")
            saved[0:3] = wq.tensors() if quantized else (w, None, None)
            if xq is not None and layer.quantizer_x.may_clip and layer.scheme.output in ("fake", "int8"):
                saved[6] = layer.quantizer_x.inside(x, xq)
        if ctx.needs_input_grad[1]:
            precision = layer.scheme.grad_weight
            quantized = xq is not None and precision in ("fake", "int8")
            saved[3:6] = xq.tensors() if quantized else (x.bfloat16() if precision == "bf16" else x, None, None)
        ctx.save_for_backward(*saved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the two backward GEMMs; the gradient is quantised once where both can share it."""
        layer: QuantLayer = ctx.layer
        g = layer.op.layout(g.float())
        saved = ctx.saved_tensors
        dx = dw = gq = None
        if ctx.needs_input_grad[1]:
            gq = layer.quantize_gradient(g, "grad_weight")
            dw = compute_grad_weight(layer, g, gq, _restore(*saved[3:6]), ctx.w_shape)
        if ctx.needs_input_grad[0]:
            w = _restore(*saved[0:3])
            per_channel = isinstance(w, QTensor) and w.per_channel and layer.scheme.grad_input == "int8"
            if per_channel:
                # The sum runs over the channel that the scale belongs to, so the scale goes into g first.
                gq = layer.quantize_gradient(g * layer.op.per_channel(w.scale.flatten()), "grad_input")
            elif gq is None or layer.scheme.grad_weight not in ("fake", "int8"):
                gq = layer.quantize_gradient(g, "grad_input")
            dx = compute_grad_input(layer, g, gq, w, ctx.x_shape)
            if saved[6] is not None:
                dx = dx * saved[6]
        offset = layer.op.rows(g).sum(0) if ctx.needs_input_grad[2] else None
        return dx, dw, offset, None, None, None


def _restore(values: Tensor, scale: Tensor | None, zero_point: Tensor | None) -> QTensor | Tensor:
    return values if scale is None else QTensor(values=values, scale=scale, zero_point=zero_point)
