"""Stand-ins for this project's layers on the meta device: their shapes, what they keep, and their work.

The layers run compiled kernels, which know no meta tensors. `tests/trace/test_memory.py` holds what is said here to
what autograd really saves.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.nn.activation import Activation
from octo_exp.nn.float_block import Bf16Conv2d, Bf16Linear, FloatConv2d
from octo_exp.nn.layers import QuantConv2d, QuantLinear
from octo_exp.nn.norm import SavedBatchNorm1d, SavedBatchNorm2d
from octo_exp.quant.operand import QUANTIZE_OPS
from octo_exp.trace.meta_copy import COUNTED
from octo_exp.trace.recorder import Recorder
from octo_exp.trace.scene import Scene, as_float, bits, outputs
from octo_exp.trace.vector import (
    FLOAT_BYTES,
    NORM_BACKWARD_OPS,
    NORM_OPS,
    RESCALE_OPS,
)

_QUANTIZED = ("fake", "int8")


def install(net: nn.Module, recorder: Recorder, *, autocast: bool) -> None:
    """Give every layer of this project in a meta copy its stand-in for `forward`; with autocast, torch's as well."""
    stand_ins: list[tuple[tuple[type, ...], Callable[..., Tensor]]] = [
        ((QuantConv2d, QuantLinear), _quant_layer),
        ((FloatConv2d,), _autocast_block if autocast else _float_block),
        ((Bf16Conv2d, Bf16Linear), _bf16_layer),
        ((Activation,), _activation),
        ((SavedBatchNorm1d, SavedBatchNorm2d), _norm),
    ]
    if autocast:
        # The meta device has no autocast of its own.
        stand_ins.append((COUNTED, _autocast_layer))
    for module in net.modules():
        stand_in = next((found for kinds, found in stand_ins if isinstance(module, kinds)), None)
        if stand_in is not None:
            module.forward = _bound(stand_in, module, module.forward, recorder)
            recorder.stand_ins.add(module)


def _bound(stand_in: Callable[..., Tensor], module: nn.Module, plain: Any, recorder: Recorder) -> Callable[..., Tensor]:
    """`plain` is torch's own forward, which the meta copy has."""
    # By position or by name: torch calls it `input`, this project's layers `x`.
    return lambda *given, **named: stand_in(Scene(recorder, module, *given, *named.values()), plain)


def _quant_layer(scene: Scene, plain: Callable[[Tensor], Tensor]) -> Tensor:
    layer, x = scene.module, scene.x
    y = scene.shape_of(plain)
    oracle = layer.scheme.compensation is not None and layer.scheme.compensation.gives_error_back
    # The oracle's error is added to the whole product, before the steps.
    leaving = y.numel() if oracle else outputs(y, layer.steps)
    scene.recorder.add_call(layer, x, y.shape, scene.event, out_elements=leaving)
    _quant_forward(scene, y)
    _quant_saved(scene)
    if scene.trained:
        _quant_backward(scene, y)
    coded = layer.quantizer_g is not None
    scene.epilogue(y, layer.steps, differentiable=scene.trained, coded=coded and not oracle)
    if oracle:
        scene.work("output", "elementwise", 2 * y.numel(), FLOAT_BYTES * y.numel(), FLOAT_BYTES * y.numel())
    return scene.make(lambda: as_float(plain(x.float()), layer.steps))


def _quant_forward(scene: Scene, y: Tensor) -> None:
    layer, x, w = scene.module, scene.x, scene.module.weight
    if layer.quantizer_x is not None:
        scene.quantize("output", x.numel(), layer.quantizer_x)
    if layer.quantizer_w is not None:
        scene.quantize("output", w.numel(), layer.quantizer_w)
        scene.use(w.numel(), backward=False)
    if layer.scheme.output == "bf16":
        scene.cast("output", x.numel())
        scene.cast("output", w.numel())
    if w.requires_grad and layer.scheme.grad_weight == "bf16":
        scene.cast("output", x.numel())
    if layer.scheme.output == "int8":
        scene.work("output", "rescale", RESCALE_OPS * y.numel())
    if _is_shifted(layer):
        # The codes' sums, for the cross term.
        scene.work("output", "elementwise", w.numel(), w.numel())
    if layer.compensator is not None:
        parameters = sum(p.numel() for p in layer.compensator.parameters())
        scene.work("output", "elementwise", parameters, FLOAT_BYTES * parameters)
        scene.work("grad_weight", "elementwise", parameters, 0, FLOAT_BYTES * parameters)


def _is_shifted(layer: Any) -> bool:
    """Whether the input has a zero point, which an integer product leaves out."""
    return layer.quantizer_x is not None and not layer.scheme.x.symmetric and layer.quantizer_w is not None


def _quant_saved(scene: Scene) -> None:
    """What `QuantGemm` saves: codes or bf16 of the input, a mask of what was clipped, noisy codes of the weight."""
    layer, x = scene.module, scene.x
    scheme, w = layer.scheme, layer.weight
    quantized = layer.quantizer_x is not None
    coded = layer.quantizer_w is not None and scheme.grad_input in _QUANTIZED
    if x.requires_grad and coded and not layer.quantizer_w.is_repeatable:
        scene.keep("activation", w.numel())
    if x.requires_grad and quantized and scheme.output in _QUANTIZED and layer.quantizer_x.may_clip:
        scene.keep("mask", bits(x))
    if x.requires_grad and coded and scheme.w.granularity == "channel":
        scene.keep("activation", FLOAT_BYTES * w.shape[0])
    _compensation_saved(scene)
    if not w.requires_grad:
        if quantized:
            scene.use(x.numel(), backward=False)
    elif quantized and scheme.grad_weight in _QUANTIZED:
        scene.keep("activation", x.numel())
    elif scheme.grad_weight == "bf16":
        scene.keep("activation", 2 * x.numel())
    elif x.dtype == torch.float32:
        scene.recorder.save(x, scene.event)
    else:
        scene.keep("activation", FLOAT_BYTES * x.numel())


def _compensation_saved(scene: Scene) -> None:
    """The zero point's cross term, for theta, and the slope of theta's shape; the affine form multiplies parameters."""
    layer = scene.module
    if layer.compensator is None or not layer.compensator.uses_zero_point:
        return
    theta = layer.compensator.theta
    if theta.requires_grad:
        scene.keep("activation", FLOAT_BYTES * layer.weight.shape[0])
    if scene.trained:
        scene.keep("activation", FLOAT_BYTES * theta.numel())


def _quant_backward(scene: Scene, y: Tensor) -> None:
    layer, x, w = scene.module, scene.x, scene.module.weight
    owed = {"grad_input": x.requires_grad, "grad_weight": w.requires_grad}
    precision = {role: layer.scheme.precision_of(role) for role, is_owed in owed.items() if is_owed}
    _gradient_codes(scene, y, precision)
    if layer.quantizer_w is not None and precision.get("grad_input") in _QUANTIZED and layer.quantizer_w.is_repeatable:
        scene.quantize("grad_input", w.numel(), layer.quantizer_w)
        scene.use(w.numel(), backward=True)
    for role, name in precision.items():
        if name == "int8":
            scene.work(role, "rescale", x.numel() if role == "grad_input" else w.numel())
        elif name == "bf16":
            scene.cast(role, y.numel() + (w.numel() if role == "grad_input" else 0))
    if precision.get("grad_weight") == "int8" and _is_shifted(layer):
        scene.work("grad_weight", "elementwise", y.numel(), y.numel())
    if x.requires_grad and layer.quantizer_x is not None and layer.quantizer_x.may_clip:
        scene.work("grad_input", "elementwise", x.numel(), bits(x) + FLOAT_BYTES * x.numel(), FLOAT_BYTES * x.numel())


def _gradient_codes(scene: Scene, y: Tensor, precision: dict[str, str]) -> None:
    """The gradient is quantised once for both roles, but where the scales of w's channels go into that of one."""
    layer = scene.module
    quantized = [role for role, name in precision.items() if name in _QUANTIZED]
    if layer.quantizer_g is None or not quantized:
        return
    # Of a pooled gradient the maxima alone are quantised.
    elements = outputs(y, layer.steps)
    scaled = layer.quantizer_g_scaled is not None and precision.get("grad_input") == "int8"
    for role in quantized if scaled else quantized[:1]:
        scene.quantize(role, elements, layer.quantizer_g)
        scene.use(y.numel(), backward=True)
    if scaled:
        scene.work("grad_input", "elementwise", elements, FLOAT_BYTES * elements, FLOAT_BYTES * elements)


def _float_block(scene: Scene, plain: Callable[[Tensor], Tensor]) -> Tensor:
    block, x = scene.module, scene.x
    y = scene.shape_of(plain)
    scene.recorder.add_call(block, x, y.shape, scene.event, out_elements=outputs(y, block.steps))
    if block.weight.requires_grad:
        scene.recorder.save(x, scene.event)
    scene.epilogue(y, block.steps, differentiable=scene.trained)
    return scene.make(lambda: as_float(plain(x), block.steps))


def _bf16_product(scene: Scene, plain: Callable[[Tensor], Tensor], *, out_bits: int) -> Tensor:
    """Shape of a layer's product in bf16, which keeps bf16 copies of its operands; an input in bf16 is its own."""
    layer, x = scene.module, scene.x
    y = scene.shape_of(plain)
    scene.recorder.add_call(layer, x, y.shape, scene.event, bf16=True, out_bits=out_bits)
    # torch's convolution saves both operands, whichever of the gradients it owes.
    both = isinstance(layer, nn.Conv2d) and scene.trained
    if both or layer.weight.requires_grad:
        scene.save_bf16(x)
    if both or x.requires_grad:
        scene.save_bf16(layer.weight)
    for t in (x, layer.weight):
        if t.dtype != torch.bfloat16:
            scene.cast("output", t.numel())
    return y


def _bf16_layer(scene: Scene, plain: Callable[[Tensor], Tensor]) -> Tensor:
    _bf16_product(scene, plain, out_bits=32)
    return scene.make(lambda: plain(scene.x.float()))


def _autocast_layer(scene: Scene, plain: Callable[[Tensor], Tensor]) -> Tensor:
    _bf16_product(scene, plain, out_bits=16)
    return scene.make(lambda: plain(scene.x.float()).bfloat16())


def _autocast_block(scene: Scene, plain: Callable[[Tensor], Tensor]) -> Tensor:
    y, steps = _bf16_product(scene, plain, out_bits=16), scene.module.steps
    scene.epilogue(y, steps, differentiable=scene.trained)
    return scene.make(lambda: as_float(plain(scene.x.float()), steps))


def _activation(scene: Scene, plain: Callable[[Tensor], Tensor]) -> Tensor:
    module, x = scene.module, scene.x
    if module.absorbed:
        return x
    scene.epilogue(x, module.steps, differentiable=x.requires_grad)
    return scene.make(lambda: module.as_float(x.float()))


def _norm(scene: Scene, plain: Callable[[Tensor], Tensor]) -> Tensor:
    module, x = scene.module, scene.x
    size = FLOAT_BYTES * x.numel()
    scene.work("output", "norm", NORM_OPS * x.numel(), size, size)
    width, vectors = (1, 3) if module.saved == "int8" else (2, 2)
    operations = QUANTIZE_OPS if module.saved == "int8" else 1
    scene.work("output", "quantize", operations * x.numel(), size, width * x.numel())
    if x.requires_grad or any(p.requires_grad for p in module.parameters()):
        # The input, and vectors of a channel each: mean, deviation, scale of the codes.
        scene.keep("activation", width * x.numel() + vectors * FLOAT_BYTES * x.shape[1])
        scene.work("grad_input", "norm", NORM_BACKWARD_OPS * x.numel(), size + width * x.numel(), size)
    return scene.make(lambda: torch.empty_like(x, dtype=torch.float32))
