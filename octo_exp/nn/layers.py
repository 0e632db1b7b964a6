"""QuantConv2d and QuantLinear: float masters outside, integer GEMMs inside, one scheme each."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.kernels.ops import ConvGeometry
from octo_exp.nn.activation import activate, activate_plainly
from octo_exp.nn.become import become
from octo_exp.nn.eager import eager
from octo_exp.nn.function import Codes, Gemms, QuantGemm, cross_term
from octo_exp.nn.layer_accounts import quantised_layer
from octo_exp.nn.three_gemms import ConvOp, LinearOp, Op
from octo_exp.quant.compensation import Compensator
from octo_exp.quant.operand import Quantizer
from octo_exp.quant.qtensor import QTensor
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import ROLE_OPERANDS, ROLES, Scheme
from octo_exp.workload import Account, Epilogue

_WIDTHS = {"fp32": 32, "bf16": 16, "fake": 32}
# (layer, operand, float tensor, its quantised form): what a probe is called with.
Observer = Callable[["QuantLayer", str, Tensor, QTensor], None]


class QuantLayer(nn.Module):
    """What both layers share: the operands' quantisers, the compensation, and the call of the three GEMMs.

    `observer`, when set, is called with every quantised operand of a training step (the health callback's probe).
    """

    weight: Tensor
    bias: Tensor | None
    op: Op

    @classmethod
    def convert(
        cls,
        layer: nn.Module,
        *,
        name: str,
        scheme: Scheme,
        impl: str,
        clock: Clock,
        output_shape: tuple[int, ...] | None,
    ) -> None:
        """Make the float layer one of this class where it stands: whoever holds it holds the quantised one."""
        quantized = become(layer, cls)
        quantized.setup(name, scheme, quantized.make_op(impl), clock, output_shape)
        quantized.train(layer.training)

    def make_op(self, impl: str) -> Op:
        """Return the layer's GEMMs."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Return the number of output channels or features."""
        raise NotImplementedError

    def setup(self, name: str, scheme: Scheme, op: Op, clock: Clock, output_shape: tuple[int, ...] | None) -> None:
        """Build quantisers and compensation; `output_shape` (C, H, W) is needed for granularity=element alone."""
        self.layer_name, self.scheme, self.op, self.clock = name, scheme, op, clock
        # ReLU and pooling that follow this layer, where `fuse` has found them.
        self.steps: Epilogue | None = None
        self.observer: Observer | None = None
        # Whether a batch has passed through; a net may read the weights past the layer.
        self.ran = False
        # Not the weight's own shape: a parametrised weight is computed whenever it is read.
        channels = (self.outputs, *[1] * (3 if isinstance(self, nn.Conv2d) else 1))
        common: dict[str, Any] = {"layer": name, "clock": clock, "impl": op.impl}
        self.quantizer_x = self._quantizer("x", stored=True, **common)
        self.quantizer_w = self._quantizer("w", stored=False, channels=channels, **common)
        self.quantizer_g = self._quantizer("g", stored=False, **common)
        # grad_input quantises g times the weight's per-channel scale: another tensor, so another state.
        scaled = scheme.w is not None and scheme.w.granularity == "channel" and self.quantizer_g is not None
        self.quantizer_g_scaled = self._quantizer("g", stored=False, **common) if scaled else None
        if self.quantizer_g_scaled is not None:
            # Another tensor, so another key of its noise.
            self.quantizer_g_scaled.operand = "g_scaled"
        self.compensator = self._compensator(output_shape)

    def _quantizer(self, operand: str, **where: Any) -> Quantizer | None:
        spec = self.scheme.operand(operand)
        if spec is None or not self.scheme.quantized_in(operand):
            return None
        clip = self.scheme.clip if operand == "g" else None
        return spec.build(operand=operand, clip=clip, **where)

    def quantizer_of(self, operand: str) -> Quantizer | None:
        """Return the quantiser of x, w, g or g_scaled; None where that operand stays float."""
        quantizer: Quantizer | None = getattr(self, f"quantizer_{operand}")
        return quantizer

    def _compensator(self, output_shape: tuple[int, ...] | None) -> Compensator | None:
        spec = self.scheme.compensation
        if spec is None:
            return None
        shape: tuple[int, ...] = (self.outputs,)
        if spec.by_element and isinstance(self, nn.Conv2d):
            if output_shape is None:
                raise UserError(f"layer {self.layer_name!r}: granularity=element needs the net's input shape")
            shape = output_shape
        return spec.build(shape)

    @property
    def operand_bits(self) -> Mapping[str, tuple[int, int]]:
        """Return the widths in bits of the two operands that each role multiplies."""
        return {role: (self._width(role, 0), self._width(role, 1)) for role in ROLES}

    def _width(self, role: str, index: int) -> int:
        precision = self.scheme.precision_of(role)
        spec = self.scheme.operand(ROLE_OPERANDS[role][index])
        return spec.bits if precision == "int8" and spec is not None else _WIDTHS[precision]

    @eager
    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, float32, whatever autocast says: the roles choose their own precision."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            # Nothing is multiplied in an empty batch; what does not fit, torch refuses.
            if x.numel() == 0 or not self.fits(x):
                y = super().forward(x)
                y = y if self.steps is None else activate_plainly(y, self.steps)
            else:
                y = self._forward(x)
        self.ran = True
        return y

    def fits(self, x: Tensor) -> bool:
        """Whether x has the rank and the channels that the layer takes."""
        raise NotImplementedError

    def _forward(self, x: Tensor) -> Tensor:
        x = self.op.layout(x)
        # Once: a parametrised weight is computed whenever it is read, and spectral norm moves its state then.
        w = self.weight
        xq = None if self.quantizer_x is None else self.quantizer_x(x.detach())
        step = None if xq is None else xq.scale
        wq = None if self.quantizer_w is None else self.quantizer_w(w.detach(), step=step)
        for operand, t, q in (("x", x, xq), ("w", w, wq)):
            if self.observer is not None and q is not None and self.training:
                self.observer(self, operand, t.detach(), q)
        # Once a step, for the cross term and for the compensation of it.
        shifted = xq is not None and xq.zero_point is not None and wq is not None
        code_sums = self.op.weight_sums(wq.values) if shifted else None
        terms = [] if self.bias is None else [self.bias]
        term, slope = self._compensation(w, xq, wq, code_sums)
        if term is not None:
            terms.append(term)
        if shifted and self.scheme.output == "int8":
            terms.append(cross_term(xq, wq, code_sums))
        offset = self._sum_offsets(terms)
        codes = Codes(x=xq, w=wq, slope=slope)
        operands = self._straight_through("x", x, xq), self._straight_through("w", w, wq), offset
        if not self._is_oracle:
            return QuantGemm.apply(*operands, self._gemms(self.steps), codes)
        y = self._give_back_error(x, w, QuantGemm.apply(*operands, self._gemms(None), codes))
        return y if self.steps is None else activate(y, self.steps, self.op.impl)

    def _straight_through(self, operand: str, t: Tensor, q: QTensor | None) -> Tensor:
        """Put the quantiser's rule for the gradient of t before the GEMM that multiplies its codes."""
        if q is None or self.scheme.output not in ("fake", "int8"):
            return t
        return self.quantizer_of(operand).straight_through(t, q, self.op.channel_dim)

    def _gemms(self, epilogue: Epilogue | None) -> Gemms:
        quantize = None if self.quantizer_g is None else self.quantize_gradient
        return Gemms(
            op=self.op,
            scheme=self.scheme,
            epilogue=epilogue,
            quantizer_w=self.quantizer_w,
            quantize_gradient=quantize,
        )

    def _sum_offsets(self, terms: list[Tensor]) -> Tensor | None:
        if any(term.dim() > 1 for term in terms):
            terms = [self.op.per_channel(term) for term in terms]
        return sum(terms[1:], start=terms[0]) if terms else None

    def _compensation(
        self, w: Tensor, xq: QTensor | None, wq: QTensor | None, code_sums: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return LAC's term and its derivative with respect to sum_k(w): rounding is straight-through there."""
        if self.compensator is None:
            return None, None
        if not self.compensator.uses_zero_point:
            return self.compensator.term(None), None
        with torch.no_grad():
            zero = xq.scale * xq.zero_point
            sums = w.flatten(1).sum(1) if code_sums is None else code_sums * wq.scale.flatten()
        return self.compensator.term(zero * sums), self.compensator.slope(zero)

    @torch.no_grad()
    def constant_compensation(self) -> Tensor | None:
        """Return what LAC adds in evaluation, [C] or [C, H, W]; None without LAC. Eval mode: ranges are stored ones."""
        w = self.weight
        xq = None if self.quantizer_x is None else self.quantizer_x(w.new_zeros(1))
        wq = None if self.quantizer_w is None else self.quantizer_w(w)
        sums = None if wq is None else self.op.weight_sums(wq.values)
        return self._compensation(w, xq, wq, sums)[0]

    @property
    def _is_oracle(self) -> bool:
        return self.scheme.compensation is not None and self.scheme.compensation.gives_error_back

    def _give_back_error(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            exact = self.op.float_output(x, w)
            if self.bias is not None:
                exact = exact + self.op.per_channel(self.bias)
            error = exact - y
        return y + error

    def quantize_gradient(self, g: Tensor, role: str, numel: int) -> QTensor:
        """Quantise the gradient for one backward role; `numel` counts the zeros of a pooled gradient as well."""
        scaled = role == "grad_input" and self.quantizer_g_scaled is not None
        quantizer = self.quantizer_g_scaled if scaled and self.scheme.grad_input == "int8" else self.quantizer_g
        q: QTensor = quantizer(g, numel)
        if self.observer is not None:
            self.observer(self, "g" if quantizer is self.quantizer_g else "g_scaled", g, q)
        return q

    def account(self, account: Account) -> None:
        """State what a call costs, see `octo_exp.workload.account`."""
        quantised_layer(account, self, exact=self._is_oracle)

    def extra_repr(self) -> str:
        """Show the scheme beside the layer's own facts."""
        roles = ", ".join(f"{r}={self.scheme.precision_of(r)}" for r in ROLES)
        return f"{super().extra_repr()}, scheme={self.scheme.name}, {roles}"


class QuantConv2d(QuantLayer, nn.Conv2d):
    """nn.Conv2d with quantised GEMMs: every stride, padding, dilation and number of groups."""

    def make_op(self, impl: str) -> ConvOp:
        """Return the convolution's GEMMs; a border that is not of zeros, or not even, is put around x before them."""
        padding = self.padding
        if isinstance(padding, str):
            left, right, top, bottom = self._reversed_padding_repeated_twice
            padding = (top, left) if (top, left) == (bottom, right) else None
        self.pads_before = padding is None or self.padding_mode != "zeros"
        geometry = ConvGeometry(
            stride=self.stride,
            padding=(0, 0) if self.pads_before else padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return ConvOp(impl=impl, geometry=geometry)

    @property
    def outputs(self) -> int:
        """Return the number of output channels."""
        return self.out_channels

    def fits(self, x: Tensor) -> bool:
        """Whether x is [N, C, H, W] or [C, H, W]."""
        return x.dim() in (3, 4) and x.shape[-3] == self.in_channels

    def _forward(self, x: Tensor) -> Tensor:
        images = x if x.dim() == 4 else x.unsqueeze(0)
        if self.pads_before:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            images = F.pad(images, self._reversed_padding_repeated_twice, mode=mode)
        y = super()._forward(images)
        return y if x.dim() == 4 else y.squeeze(0)


class QuantLinear(QuantLayer, nn.Linear):
    """nn.Linear with quantised GEMMs."""

    def make_op(self, impl: str) -> LinearOp:
        """Return the GEMMs."""
        return LinearOp(impl=impl)

    @property
    def outputs(self) -> int:
        """Return the number of output features."""
        return self.out_features

    def fits(self, x: Tensor) -> bool:
        """Whether x is [..., I]."""
        return x.dim() > 0 and x.shape[-1] == self.in_features
