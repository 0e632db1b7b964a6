"""What the layers of this room cost: their products, the work beside them, and what they keep for the backward pass.

`tests/tracing/test_memory.py` holds what is said here to what autograd really saves. What quantising an element costs,
and what its gradient does, each quantiser says itself.
"""

import math
from typing import Any

from octo_exp.quant.operand import Quantizer
from octo_exp.workload import (
    FLOAT_BYTES,
    NORM_BACKWARD_OPS,
    NORM_OPS,
    QUANTIZE_OPS,
    RESCALE_OPS,
    Account,
    leaving,
)

_QUANTIZED = ("fake", "int8")


def quantised_layer(account: Account, layer: Any, *, exact: bool) -> None:
    """Account for a QuantLayer; `exact`: the oracle's error is added to the whole product, before the epilogue."""
    through = _straight_through(layer)
    # A quantiser that learns owes its input's gradient to itself.
    account.grad_input |= any(quantizer.learns for _, quantizer in through if quantizer.operand == "x")
    y = account.multiply(layer, epilogue=None if exact else layer.steps)
    _forward(account, layer, math.prod(y))
    _saved(account, layer)
    if account.differentiable:
        for role, quantizer in through:
            shape = account.x_shape if quantizer.operand == "x" else tuple(layer.weight.shape)
            owed = account.grad_input if quantizer.operand == "x" else layer.weight.requires_grad
            quantizer.account_gradient(account, role, shape, owed=owed)
        _backward(account, layer, y)
    account.epilogue(y, layer.steps, coded=layer.quantizer_g is not None and not exact)
    if exact:
        size = FLOAT_BYTES * math.prod(y)
        account.vector("output", "elementwise", 2 * math.prod(y), size, size)
    account.make(leaving(y, layer.steps))


def _straight_through(layer: Any) -> list[tuple[str, Quantizer]]:
    """Return the quantisers of the output's operands, each with the role whose gradient passes its rule."""
    if layer.scheme.output not in _QUANTIZED:
        return []
    pairs = (("grad_input", layer.quantizer_x), ("grad_weight", layer.quantizer_w))
    return [(role, quantizer) for role, quantizer in pairs if quantizer is not None]


def _quantize(account: Account, role: str, elements: int, quantizer: Quantizer) -> None:
    account.quantize(role, elements, each=quantizer.operations)


def _forward(account: Account, layer: Any, y_elements: int) -> None:
    x_elements, weights, scheme = account.x_elements, layer.weight.numel(), layer.scheme
    if layer.quantizer_x is not None:
        _quantize(account, "output", x_elements, layer.quantizer_x)
    if layer.quantizer_w is not None:
        _quantize(account, "output", weights, layer.quantizer_w)
        account.use(weights)
    if scheme.output == "bf16":
        account.cast("output", x_elements)
        account.cast("output", weights)
    if layer.weight.requires_grad and scheme.grad_weight == "bf16":
        account.cast("output", x_elements)
    if scheme.output == "int8":
        account.vector("output", "rescale", RESCALE_OPS * y_elements)
    if _is_shifted(layer):
        # The codes' sums, for the cross term.
        account.vector("output", "elementwise", weights, weights)
    if layer.compensator is not None:
        parameters = sum(p.numel() for p in layer.compensator.parameters())
        account.vector("output", "elementwise", parameters, FLOAT_BYTES * parameters)
        account.vector("grad_weight", "elementwise", parameters, 0, FLOAT_BYTES * parameters)


def _is_shifted(layer: Any) -> bool:
    """Whether the input has a zero point, which an integer product leaves out."""
    return layer.quantizer_x is not None and not layer.scheme.x.symmetric and layer.quantizer_w is not None


def _saved(account: Account, layer: Any) -> None:
    """What the GEMMs save: codes or bf16 of the input, noisy codes of the weight."""
    scheme, w = layer.scheme, layer.weight
    quantized = layer.quantizer_x is not None
    coded = layer.quantizer_w is not None and scheme.grad_input in _QUANTIZED
    if account.grad_input and coded and not layer.quantizer_w.is_repeatable:
        account.keep("activation", w.numel())
    if account.grad_input and coded and scheme.w.granularity == "channel":
        account.keep("activation", FLOAT_BYTES * w.shape[0])
    _compensation_saved(account, layer)
    if not w.requires_grad:
        account.use(account.x_elements if quantized else 0)
    elif quantized and scheme.grad_weight in _QUANTIZED:
        account.keep("activation", account.x_elements)
    elif scheme.grad_weight == "bf16":
        account.keep("activation", 2 * account.x_elements)
    elif account.x_bits == 32:
        account.keep_input()
    else:
        account.keep("activation", FLOAT_BYTES * account.x_elements)


def _compensation_saved(account: Account, layer: Any) -> None:
    """The zero point's cross term, for theta, and the slope of theta's shape; the affine form multiplies parameters."""
    if layer.compensator is None or not layer.compensator.uses_zero_point:
        return
    theta = layer.compensator.theta
    if theta.requires_grad:
        account.keep("activation", FLOAT_BYTES * layer.weight.shape[0])
    if account.differentiable:
        account.keep("activation", FLOAT_BYTES * theta.numel())


def _backward(account: Account, layer: Any, y: tuple[int, ...]) -> None:
    x_elements, y_elements, weights = account.x_elements, math.prod(y), layer.weight.numel()
    owed = {"grad_input": account.grad_input, "grad_weight": layer.weight.requires_grad}
    precision = {role: layer.scheme.precision_of(role) for role, is_owed in owed.items() if is_owed}
    _gradient_codes(account, layer, y, precision)
    if layer.quantizer_w is not None and precision.get("grad_input") in _QUANTIZED and layer.quantizer_w.is_repeatable:
        _quantize(account, "grad_input", weights, layer.quantizer_w)
        account.use(weights, backward=True)
    for role, name in precision.items():
        if name == "int8":
            account.vector(role, "rescale", x_elements if role == "grad_input" else weights)
        elif name == "bf16":
            account.cast(role, y_elements + (weights if role == "grad_input" else 0))
    if precision.get("grad_weight") == "int8" and _is_shifted(layer):
        account.vector("grad_weight", "elementwise", y_elements, y_elements)


def _gradient_codes(account: Account, layer: Any, y: tuple[int, ...], precision: dict[str, str]) -> None:
    """The gradient is quantised once for both roles, but where the scales of w's channels go into that of one."""
    quantized = [role for role, name in precision.items() if name in _QUANTIZED]
    if layer.quantizer_g is None or not quantized:
        return
    # Of a pooled gradient the maxima alone are quantised.
    elements = math.prod(leaving(y, layer.steps))
    scaled = layer.quantizer_g_scaled is not None and precision.get("grad_input") == "int8"
    for role in quantized if scaled else quantized[:1]:
        _quantize(account, role, elements, layer.quantizer_g)
        account.use(math.prod(y), backward=True)
    if scaled:
        account.vector("grad_input", "elementwise", elements, FLOAT_BYTES * elements, FLOAT_BYTES * elements)


def float_block(account: Account, block: Any) -> None:
    """Account for a FloatConv2d: fp32, or under autocast bf16, with its epilogue."""
    if account.autocast:
        y = account.multiply_in_bf16(block, out_bits=16)
    else:
        y = account.multiply(block, epilogue=block.steps)
        if block.weight.requires_grad:
            account.keep_input()
    account.epilogue(y, block.steps)
    account.make(leaving(y, block.steps))


def saved_norm(account: Account, norm: Any) -> None:
    """Account for a norm that saves its input as int8 or bf16."""
    elements, size, is_int8 = account.x_elements, FLOAT_BYTES * account.x_elements, norm.saved == "int8"
    width, vectors = (1, 3) if is_int8 else (2, 2)
    account.vector("output", "norm", NORM_OPS * elements, size, size)
    account.vector("output", "quantize", (QUANTIZE_OPS if is_int8 else 1) * elements, size, width * elements)
    if account.differentiable:
        # The input, and vectors of a channel each: mean, deviation, scale of the codes.
        account.keep("activation", width * elements + vectors * FLOAT_BYTES * account.x_shape[1])
        account.vector("grad_input", "norm", NORM_BACKWARD_OPS * elements, size + width * elements, size)
    account.make(account.x_shape)
