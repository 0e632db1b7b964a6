"""What the layers of this room cost: their products, the work beside them, and what they keep for the backward pass.

`tests/tracing/test_memory.py` holds what is said here to what autograd really saves. What quantising an element costs,
and what its gradient does, each quantiser says itself.
"""

import math
from typing import Any

from octo_exp.quant.quantizer import Quantizer
from octo_exp.quant.scheme import ROLE_OPERANDS
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
    coded = layer.quantizer_g is not None or layer.quantizer_g_weight is not None
    account.epilogue(y, layer.steps, coded=coded and not exact)
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


def _forward(account: Account, layer: Any, y_elements: int) -> None:
    x_elements, weights, scheme = account.x_elements, layer.weight.numel(), layer.scheme
    if layer.quantizer_x is not None:
        account.quantize("output", x_elements, each=layer.quantizer_x.operations)
    if layer.quantizer_w is not None:
        account.quantize("output", weights, each=layer.quantizer_w.operations)
        account.use(weights)
    if layer.quantizer_x_weight is not None and layer.weight.requires_grad:
        # In the forward pass, which alone has x; its own codes are kept in the place of the shared ones.
        account.quantize("output", x_elements, each=layer.quantizer_x_weight.operations)
        account.use(x_elements)
    if scheme.output == "bf16":
        account.cast("output", x_elements)
        account.cast("output", weights)
    if layer.weight.requires_grad and scheme.grad_weight == "bf16":
        account.cast("output", x_elements)
    if scheme.output == "int8":
        account.vector("output", "rescale", RESCALE_OPS * y_elements)
        _rescale_again(account, layer, "output", y_elements, ("x",))
    if _is_shifted(layer):
        # The codes' sums, for the cross term.
        account.vector("output", "elementwise", weights, weights)
    if layer.compensator is not None:
        parameters = sum(p.numel() for p in layer.compensator.parameters())
        account.vector("output", "elementwise", parameters, FLOAT_BYTES * parameters)
        account.vector("grad_weight", "elementwise", parameters, 0, FLOAT_BYTES * parameters)


def _rescale_again(account: Account, layer: Any, role: str, elements: int, operands: tuple[str, ...]) -> None:
    """A pass over the result for each operand that has scales which the kernels do not multiply in."""
    for operand in operands:
        key = layer.key_of(role, operand)
        # w's scales of output channels go into g first.
        inside = key is None or (operand == "w" and layer.key_of(role, "g") == "g_scaled")
        if not inside and layer.quantizer_of(key).spec.granularity.name != "tensor":
            account.vector(role, "elementwise", elements, FLOAT_BYTES * elements, FLOAT_BYTES * elements)


def _is_shifted(layer: Any) -> bool:
    """Whether the input has a zero point, which an integer product leaves out."""
    return layer.quantizer_x is not None and not layer.scheme.x.symmetric and layer.quantizer_w is not None


def _saved(account: Account, layer: Any) -> None:
    """What the GEMMs save: codes or bf16 of the input, noisy codes of the weight."""
    scheme, w = layer.scheme, layer.weight
    # What grad_input quantises by itself it makes of the weight, in the backward pass.
    if account.grad_input and layer.key_of("grad_input", "w") == "w":
        account.keep("activation", layer.quantizer_w.scale_bytes(w.shape))
        account.keep("activation", 0 if layer.quantizer_w.is_repeatable else w.numel())
    _compensation_saved(account, layer)
    key = layer.key_of("grad_weight", "x")
    if not w.requires_grad:
        account.use(account.x_elements if layer.quantizer_x is not None else 0)
    elif key is not None:
        account.keep("activation", account.x_elements + layer.quantizer_of(key).scale_bytes(account.x_shape))
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
    key = layer.key_of("grad_input", "w") if "grad_input" in precision else None
    if key is not None and (key == "w_input" or layer.quantizer_w.is_repeatable):
        account.quantize("grad_input", weights, each=layer.quantizer_of(key).operations)
        account.use(weights, backward=True)
    for role, name in precision.items():
        if name == "int8":
            results = x_elements if role == "grad_input" else weights
            account.vector(role, "rescale", results)
            _rescale_again(account, layer, role, results, ROLE_OPERANDS[role])
        elif name == "bf16":
            account.cast(role, y_elements + (weights if role == "grad_input" else 0))
    key = layer.key_of("grad_weight", "x")
    if precision.get("grad_weight") == "int8" and not layer.quantizer_of(key).spec.symmetric:
        account.vector("grad_weight", "elementwise", y_elements, y_elements)


def _gradient_codes(account: Account, layer: Any, y: tuple[int, ...], precision: dict[str, str]) -> None:
    """The gradient is quantised once for both roles, but where one has its own, or scales of w go into it."""
    # Of a pooled gradient the maxima alone are quantised.
    elements = math.prod(leaving(y, layer.steps))
    made = set()
    for role in precision:
        key = layer.key_of(role, "g")
        if key is not None and key not in made:
            made.add(key)
            account.quantize(role, elements, each=layer.quantizer_of(key).operations)
            account.use(math.prod(y), backward=True)
    if "g_scaled" in made:
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
