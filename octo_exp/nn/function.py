"""The autograd function with the three GEMMs, each in its own precision, and the epilogue fused to the first.

output       y  = epilogue(x^ (*) w^ + offset)   grad_input  dx = g^ (*) w^       grad_weight  dw = g^ (*) x^ + slope
where ^ means quantised (int8, fake) or as it is (fp32, bf16), the epilogue is ReLU and pooling or nothing, and g is the
gradient before it, quantised where it is not zero by construction. dx and dw are the gradients of x^ and w^: what
becomes of them at x and w is the quantisers' rule (`octo_exp.quant.straight_through`). What a backward GEMM needs is
saved in the form in which it is used: int8 codes and scales where it is quantised, bits and int8 places for the
epilogue, all through save_for_backward. Codes of the weight are made again from the weight, which is there anyway.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from octo_exp.nn.three_gemms import Op
from octo_exp.quant.operand import Quantizer
from octo_exp.quant.qtensor import QTensor
from octo_exp.quant.scheme import Scheme
from octo_exp.workload import Epilogue


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gemms:
    """The three GEMMs of a layer: what multiplies, each role's precision, what follows the first, and who quantises.

    quantize_gradient: (g, role, numel) -> its codes; numel counts the zeros that a pooled gradient leaves out.
    """

    op: Op
    scheme: Scheme
    epilogue: Epilogue | None
    quantizer_w: Quantizer | None
    quantize_gradient: Callable[[Tensor, str, int], QTensor] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codes:
    """x and w quantised, None where they stay float; slope: LAC's derivative with respect to sum_k(w), or None."""

    x: QTensor | None
    w: QTensor | None
    slope: Tensor | None


def _as_float(t: Tensor, q: QTensor | None, precision: str) -> Tensor:
    if precision == "bf16":
        return t.bfloat16()
    return q.dequantize() if precision == "fake" and q is not None else t


def product_scale(xq: QTensor, wq: QTensor) -> Tensor:
    """Return s_x * s_w: a scalar, or [O] where w has a scale a channel."""
    scale = xq.scale * wq.scale
    return scale.flatten() if wq.per_channel else scale


def cross_term(xq: QTensor, wq: QTensor, code_sums: Tensor) -> Tensor:
    """Return -s_x*s_w*z_x*sum_k(q_w) [O], for sum_k (q_x - z) q_w = acc - z * sum_k q_w; float64 keeps it exact."""
    return -(product_scale(xq, wq).double() * (xq.zero_point * code_sums)).float()


def compute_output(
    gemms: Gemms, x: Tensor, w: Tensor, offset: Tensor | None, codes: Codes
) -> tuple[Tensor, Tensor | None]:
    """x, w -> (y float32, mask of the epilogue). For int8, `offset` holds the zero point's cross term already."""
    op, epilogue, xq, wq = gemms.op, gemms.epilogue, codes.x, codes.w
    precision = gemms.scheme.output
    if precision == "int8":
        pad = 0 if xq.zero_point is None else xq.zero_point
        scale = product_scale(xq, wq)
        return op.output(xq.values, wq.values, pad_value=pad, scale=scale, offset=offset, steps=epilogue)
    y = op.float_output(_as_float(x, xq, precision), _as_float(w, wq, precision)).float()
    y = y if offset is None else y + op.per_channel(offset)
    return (y, None) if epilogue is None else op.backend(y).activate(y, epilogue)


def compute_grad_input(gemms: Gemms, g: Tensor, gq: QTensor | None, w: Any, x_shape: torch.Size) -> Tensor:
    """g, w (QTensor, or float) -> dx. gq is g quantised, with w's per-channel scale already multiplied in."""
    precision = gemms.scheme.grad_input
    if precision == "int8":
        scale = gq.scale if w.per_channel else gq.scale * w.scale
        return gemms.op.grad_input(gq.values, w.values, x_shape, scale=scale)
    weight = w.dequantize() if isinstance(w, QTensor) else _as_float(w, None, precision)
    return gemms.op.float_grad_input(_as_float(g, gq, precision), weight, x_shape).float()


def compute_grad_weight(
    gemms: Gemms, g: Tensor, gq: QTensor | None, x: Any, w_shape: torch.Size, slope: Tensor | None
) -> Tensor:
    """g, x (QTensor, or float), slope [O] or None -> dw, float32."""
    precision = gemms.scheme.grad_weight
    if precision == "int8":
        zero, scale = x.zero_point, gq.scale * x.scale
        if zero is not None:
            sums = gemms.op.row_sums(gemms.op.rows(gq.values).t())
            cross = -(scale.double() * (zero * sums)).float()
            slope = cross if slope is None else cross + slope
        pad = 0 if zero is None else zero
        return gemms.op.grad_weight(gq.values, x.values, w_shape, pad_value=pad, scale=scale, offset=slope)
    operand = x.dequantize() if isinstance(x, QTensor) else _as_float(x, None, precision)
    dw = gemms.op.float_grad_weight(_as_float(g, gq, precision), operand, w_shape).float()
    return dw if slope is None else dw + slope.reshape(-1, *[1] * (dw.dim() - 1))


class QuantGemm(torch.autograd.Function):
    """x, w, offset, gemms, codes -> y. Differentiable in x and w as their codes stand for them, and in offset.

    offset ([O], [O, OH, OW] or None) is added before the epilogue; codes.slope (of its shape, or None) is its
    derivative with respect to sum_k(w), which reaches the weight's gradient without a tensor of the weight's size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, offset: Tensor | None, gemms: Gemms, codes: Codes) -> Tensor:
        """Compute the output GEMM and save what the backward GEMMs use."""
        y, mask = compute_output(gemms, x, w, offset, codes)
        ctx.gemms, ctx.x_shape, ctx.w_shape = gemms, x.shape, w.shape
        ctx.offset_shape = None if offset is None else offset.shape
        saved = *QuantGemm._weight(ctx, w, codes.w), *QuantGemm._input(ctx, x, codes.x)
        ctx.save_for_backward(*saved, mask, codes.slope)
        return y

    @staticmethod
    def _weight(ctx: Any, w: Tensor, wq: QTensor | None) -> tuple[Tensor | None, Tensor | None]:
        gemms: Gemms = ctx.gemms
        if not ctx.needs_input_grad[0]:
            return None, None
        if wq is None or gemms.scheme.grad_input not in ("fake", "int8"):
            return w, None
        # Rounding that draws noise is not repeated.
        return (w if gemms.quantizer_w.is_repeatable else wq.values), wq.scale

    @staticmethod
    def _input(ctx: Any, x: Tensor, xq: QTensor | None) -> tuple[Tensor | None, ...]:
        precision = ctx.gemms.scheme.grad_weight
        if not ctx.needs_input_grad[1]:
            return None, None, None
        if xq is not None and precision in ("fake", "int8"):
            return xq.tensors()
        return (x.bfloat16() if precision == "bf16" else x), None, None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the two backward GEMMs; the gradient is quantised once where both can share it."""
        gemms: Gemms = ctx.gemms
        w, w_scale, x, x_scale, x_zero, mask, slope = ctx.saved_tensors
        gradient = Gradient(gemms, g, mask, gemms.op.output_size(ctx.x_shape, ctx.w_shape))
        dx = dw = offset = None
        if ctx.offset_shape is not None and (ctx.needs_input_grad[2] or slope is not None):
            offset = gradient.sum_to(ctx.offset_shape)
        if ctx.needs_input_grad[1]:
            slopes = None if slope is None else (slope * offset).reshape(ctx.w_shape[0], -1).sum(1)
            operand = x if x_scale is None else QTensor(values=x, scale=x_scale, zero_point=x_zero)
            g, gq = gradient.operands("grad_weight")
            dw = compute_grad_weight(gemms, g, gq, operand, ctx.w_shape, slopes)
        if ctx.needs_input_grad[0]:
            weight = w if w_scale is None else gemms.quantizer_w.again(w, w_scale)
            g, gq = gradient.operands("grad_input", weight)
            dx = compute_grad_input(gemms, g, gq, weight, ctx.x_shape)
        return dx, dw, offset, None, None


class Gradient:
    """The gradient of a layer's output as the backward GEMMs want it: before the epilogue, float or quantised.

    It is masked once, quantised where the windows' maxima are and only then spread over them: zeros need no rounding.
    """

    def __init__(self, gemms: Gemms, g: Tensor, mask: Tensor | None, size: tuple[int, int]) -> None:
        self.gemms, self.mask, self.size = gemms, mask, size
        self.op, self.epilogue = gemms.op, gemms.epilogue
        g = self.op.layout(g.float())
        if mask is not None:
            # A linear layer's mask has rows, whatever the rank of its output.
            rows = g if mask.dim() == g.dim() else self.op.rows(g)
            g = self.op.backend(g).mask_gradient(rows, mask, self.epilogue).reshape(g.shape)
        self.compact = g
        self._codes: tuple[Tensor, QTensor] | None = None

    def _spread(self, t: Tensor) -> Tensor:
        if self.epilogue is None or self.epilogue.pool == 1:
            return t
        return self.op.backend(t).spread(t, self.mask, self.epilogue, self.size)

    def sum_to(self, shape: torch.Size) -> Tensor:
        """Return the gradient of the offset, [O] or [O, OH, OW]."""
        return self.op.rows(self.compact).sum(0) if len(shape) == 1 else self._spread(self.compact).sum(0)

    def operands(self, role: str, w: Any = None) -> tuple[Tensor, QTensor | None]:
        """Return (float gradient, its codes or None) for one role: what that role does not use is not made."""
        precision = self.gemms.scheme.precision_of(role)
        if self.gemms.quantize_gradient is None or precision not in ("fake", "int8"):
            return self._spread(self.compact), None
        if precision == "int8" and isinstance(w, QTensor) and w.per_channel:
            # The sum runs over the channel that the scale belongs to, so the scale goes into g first.
            scaled = self.compact * self.op.per_channel(w.scale.flatten())
            return scaled, self._quantized(scaled, role)
        if self._codes is None:
            self._codes = self.compact, self._quantized(self.compact, role)
        return self._codes

    def _quantized(self, g: Tensor, role: str) -> QTensor:
        pooled = self.epilogue is not None and self.epilogue.pool > 1
        numel = g.shape[0] * g.shape[1] * self.size[0] * self.size[1] if pooled else g.numel()
        q = self.gemms.quantize_gradient(g, role, numel)
        return QTensor(values=self._spread(q.values), scale=q.scale, zero_point=q.zero_point)
