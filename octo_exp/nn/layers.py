"""QuantConv2d and QuantLinear: float masters outside, integer GEMMs inside, one scheme each."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octo_exp.nn.activation import activate, activate_plainly, recorded
from octo_exp.nn.become import become
from octo_exp.nn.contract import Codes, Operand
from octo_exp.nn.layer_accounts import quantised_layer
from octo_exp.nn.layer_parts import build_parts, geometry_of
from octo_exp.nn.three_gemms import ConvOp, LinearOp, Op, QuantGemm, cross_term
from octo_exp.quant.compensation import Compensator
from octo_exp.quant.forms import in_backward
from octo_exp.quant.quantizer import QTensor, Quantizer
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import ROLES, Scheme
from octo_exp.workload import Account, Epilogue

# (layer, operand, float tensor, its quantised form): what a probe is called with.
Observer = Callable[["QuantLayer", str, Tensor, QTensor], None]


class Gradient:
    """The gradient of a layer's output as the backward GEMMs want it: before the epilogue, float or quantised.

    It is masked once, quantised where the windows' maxima are and only then spread over them: zeros need no rounding.
    """

    def __init__(
        self, layer: "QuantLayer", g: Tensor, mask: Tensor | None, epilogue: Epilogue | None, size: tuple[int, int]
    ) -> None:
        self.layer, self.op, self.mask, self.epilogue, self.size = layer, layer.op, mask, epilogue, size
        g = self.op.layout(g.float())
        if mask is not None and epilogue is not None:
            # A linear layer's mask has rows, whatever the rank of its output.
            rows = g if mask.dim() == g.dim() else self.op.rows(g)
            g = self.op.backend(g).mask_gradient(rows, mask, epilogue).reshape(g.shape)
        self.compact = g
        # By the name of their quantiser: where it serves both roles, its codes do.
        self._codes: dict[str, QTensor] = {}

    def _spread(self, t: Tensor) -> Tensor:
        if self.epilogue is None or self.mask is None or self.epilogue.pool == 1:
            return t
        return self.op.backend(t).spread(t, self.mask, self.epilogue, self.size)

    def sum_to(self, shape: torch.Size) -> Tensor:
        """Return the gradient of the offset, [O] or [O, OH, OW]."""
        return self.op.rows(self.compact).sum(0) if len(shape) == 1 else self._spread(self.compact).sum(0)

    def operands(self, role: str, w: Any = None) -> tuple[Tensor, QTensor | None, Any]:
        """Return (float gradient, its codes or None, w) for one role: what that role does not use is not made."""
        key, g = self.layer.key_of(role, "g"), self.compact
        if key is None:
            return self._spread(g), None, w
        if key == "g_scaled":
            # The sum runs over the channel that the scale belongs to, so the scale goes into g first.
            g, w = g * self.op.per_channel(w.scale.flatten()), QTensor(values=w.values, scale=w.scale.new_ones(()))
        if key not in self._codes:
            pooled = self.epilogue is not None and self.epilogue.pool > 1
            numel = g.shape[0] * g.shape[1] * self.size[0] * self.size[1] if pooled else g.numel()
            q = self.layer.quantize(key, g, numel)
            self._codes[key] = QTensor(values=self._spread(q.values), scale=q.scale, zero_point=q.zero_point)
        return g, self._codes[key], w


class QuantLayer(nn.Module):
    """What both layers share: the operands' quantisers, the compensation, and the call of the three GEMMs.

    `observer`, when set, is called with every quantised operand of a training step (the health callback's probe).
    """

    weight: Tensor
    bias: Tensor | None
    layer_name: str
    op: Op
    scheme: Scheme
    clock: Clock
    quantizer_x: Quantizer | None
    quantizer_w: Quantizer | None
    compensator: Compensator | None
    # (role, operand) -> the name of the quantiser whose codes the role takes.
    keys: dict[tuple[str, str], str]
    # ReLU and pooling that follow this layer, where `fuse` has found them.
    steps: Epilogue | None = None
    observer: Observer | None = None
    # Whether a batch has passed through; a net may read the weights past the layer.
    ran = False

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
        build_parts(quantized, name, scheme, quantized.make_op(impl), clock, output_shape)
        quantized.train(layer.training)

    def make_op(self, impl: str) -> Op:
        """Return the layer's GEMMs."""
        raise NotImplementedError

    def quantizer_of(self, key: str) -> Quantizer | None:
        """Return the quantiser of x, w, g, g_scaled or what a role quantises by itself; None where there is none."""
        quantizer: Quantizer | None = getattr(self, f"quantizer_{key}")
        return quantizer

    def key_of(self, role: str, operand: str) -> str | None:
        """Return the name of the quantiser whose codes a role takes of x, w or g; None where it takes the floats."""
        return self.keys.get((role, operand))

    # Compiled loops begin here, see `eager`.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, float32, whatever autocast says: the roles choose their own precision."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined, no-untyped-call]
            raise recorded()
        self._count()
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            # Nothing is multiplied in an empty batch; what does not fit, torch refuses.
            if x.numel() == 0 or not self.fits(x):
                y: Tensor = super().forward(x)
                y = y if self.steps is None else activate_plainly(y, self.steps)
            else:
                y = self._forward(x)
        self.ran = True
        return y

    def _count(self) -> None:
        """Let a call of the layer past its net begin a step, see `StepCounter`."""
        passes = self.clock.passes
        if passes is None or not self.training or not torch.is_grad_enabled() or in_backward():
            return
        if not passes.inside and (passes.called is None or self.layer_name in passes.called):
            self.clock.step, passes.called, passes.due = self.clock.step + 1, set(), False
        if passes.called is not None:
            passes.called.add(self.layer_name)

    def fits(self, x: Tensor) -> bool:
        """Whether x has the rank and the channels that the layer takes."""
        raise NotImplementedError

    def _forward(self, x: Tensor) -> Tensor:
        x = self.op.layout(x)
        # Once: a parametrised weight is computed whenever it is read, and spectral norm moves its state then.
        w = self.weight
        xq = None if self.quantizer_x is None else self.quantize("x", x.detach())
        step = None if xq is None else xq.scale
        wq = None if self.quantizer_w is None else self.quantize("w", w.detach(), step=step)
        code_sums = cross = None
        if xq is not None and xq.zero_point is not None and wq is not None:
            # Once a step, for the cross term and for the compensation of it.
            code_sums = self.op.weight_sums(wq.values)
            cross = cross_term(xq, wq, xq.zero_point, code_sums) if self.scheme.output == "int8" else None
        term, slope = self.compensation(w, xq, wq, code_sums)
        offset = self._sum_offsets([t for t in (self.bias, term, cross) if t is not None])
        codes = Codes(x=xq, w=wq, slope=slope)
        operands = self._straight_through("x", x, xq), self._straight_through("w", w, wq), offset
        is_oracle = self._is_oracle
        steps = None if is_oracle else self.steps
        y: Tensor = QuantGemm.apply(*operands, self, steps, codes)  # type: ignore[no-untyped-call]
        if not is_oracle:
            return y
        y = self._give_back_error(x, w, y)
        return y if self.steps is None else activate(y, self.steps, self.op.impl)

    def _straight_through(self, operand: str, t: Tensor, q: QTensor | None) -> Tensor:
        """Put the quantiser's rule for the gradient of t before the GEMM that multiplies its codes."""
        quantizer = self.quantizer_of(operand)
        if q is None or quantizer is None or self.scheme.output not in ("fake", "int8"):
            return t
        return quantizer.straight_through(t, q, self.op.channel_dim)

    def _sum_offsets(self, terms: list[Tensor]) -> Tensor | None:
        if any(term.dim() > 1 for term in terms):
            terms = [self.op.per_channel(term) for term in terms]
        return sum(terms[1:], start=terms[0]) if terms else None

    def compensation(
        self, w: Tensor, xq: QTensor | None, wq: QTensor | None, code_sums: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return LAC's term and its derivative with respect to sum_k(w): rounding is straight-through there."""
        if self.compensator is None:
            return None, None
        if not self.compensator.uses_zero_point:
            return self.compensator.term(None), None
        with torch.no_grad():
            # A scheme refuses this compensation where x has no zero point.
            shifted = cast(QTensor, xq)
            zero = shifted.scale * cast(Tensor, shifted.zero_point)
            sums = w.flatten(1).sum(1) if wq is None or code_sums is None else code_sums * wq.scale.flatten()
        return self.compensator.term(zero * sums), self.compensator.slope(zero)

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

    def quantize(self, key: str, t: Tensor, numel: int | None = None, *, step: Tensor | None = None) -> QTensor:
        """Quantise by the quantiser of that name; `numel` counts the zeros of a pooled gradient as well."""
        q: QTensor = getattr(self, f"quantizer_{key}")(t, numel, step=step)
        if self.observer is not None and self.training:
            self.observer(self, key, t, q)
        return q

    def saved_weight(self, w: Tensor, wq: QTensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what grad_input is given of w: itself, or codes that cannot be made again; and their scale."""
        if wq is None or self.quantizer_w is None or self.key_of("grad_input", "w") != "w":
            return w, None
        return (w if self.quantizer_w.is_repeatable else wq.values), wq.scale

    def weight_again(self, w: Tensor, scale: Tensor | None) -> Operand:
        """Return w as grad_input multiplies it."""
        if scale is not None and self.quantizer_w is not None:
            return self.quantizer_w.again(w, scale)
        key = self.key_of("grad_input", "w")
        return w if key is None else self.quantize(key, w)

    def saved_input(self, x: Tensor, xq: QTensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what grad_weight is given of x: values, scale and zero point of codes, or floats."""
        key = self.key_of("grad_weight", "x")
        if key is None:
            return (x.bfloat16() if self.scheme.grad_weight == "bf16" else x), None, None
        q = xq if xq is not None and key == "x" else self.quantize(key, x)
        return q.values, q.scale, q.zero_point

    def gradient(self, *given: Any) -> Gradient:
        """Return the gradient of the output as the backward GEMMs take it."""
        return Gradient(self, *given)

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
            padding = (top, left) if (top, left) == (bottom, right) else "uneven"
        self.pads_before = padding == "uneven" or self.padding_mode != "zeros"
        return ConvOp(impl=impl, geometry=geometry_of(self, (0, 0) if self.pads_before else padding))

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

    # As torch declares it; None in a layer without one.
    bias: nn.Parameter

    def make_op(self, impl: str) -> LinearOp:
        """Return the GEMMs."""
        return LinearOp(impl=impl)

    def fits(self, x: Tensor) -> bool:
        """Whether x is [..., I]."""
        return x.dim() > 0 and x.shape[-1] == self.in_features
