"""Float net -> quantised net: swap layers in place, and what the training loop needs to know of the result."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from octo_exp.base.errors import UserError
from octo_exp.nn.float_block import to_bf16
from octo_exp.nn.fuse import fuse
from octo_exp.nn.layers import QuantLayer
from octo_exp.nn.select import CONVERTERS, Selection, select
from octo_exp.quant.quantizer import Quantizer
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme

log = logging.getLogger(__name__)


def convert(
    net: nn.Module,
    scheme: Scheme,
    *,
    impl: str,
    clock: Clock,
    input_shape: tuple[int, ...] | None = None,
    keep: Mapping[str, str] | None = None,
) -> Selection:
    """Quantise the net's convolutions and linear layers, in place; return which, and why others stay float.

    A layer keeps its parameters, hooks and all who hold it: it changes its class. Subclasses are quantised with their
    torch class where they compute what that does, parametrised layers (weight norm, pruning) in every form. What else
    multiplies stays float and is named in one line of the log.

    `scheme.skip` names layers that stay float: `first` and `last` (in order of definition) or name patterns.
    `input_shape` (C, H, W) is needed where the compensation has parameters per output element, and by lazy layers.
    A float scheme changes nothing. `keep` names layers that stay float though the scheme takes them, with their type,
    fp32 or bf16 (the speed guard's verdict). ReLU, pooling and norms are swapped for forms that keep bits and int8 for
    the backward pass (`fuse`). Raises UserError where a scheme, a skip or an override matches no layer, or
    the net is itself one layer.
    """
    selection = quantize(net, scheme, impl=impl, clock=clock, input_shape=input_shape, keep=keep or {})
    if selection.floats and not scheme.is_float:
        log.info(selection.line())
    return selection


def quantize(
    net: nn.Module,
    scheme: Scheme,
    *,
    impl: str,
    clock: Clock,
    input_shape: tuple[int, ...] | None,
    keep: Mapping[str, str],
) -> Selection:
    """Do what `convert` does, without a word."""
    if isinstance(net, tuple(CONVERTERS)):
        raise UserError("the net is itself one layer: wrap it in nn.Sequential, and give skip=[] to quantise it")
    _settle_shapes(net, input_shape)
    selection = select(net, scheme, keep)
    if scheme.is_float:
        return selection
    chosen = selection.quantized
    for name in chosen:
        scheme.for_layer(name).check_layer(name, is_convolution=isinstance(net.get_submodule(name), nn.Conv2d))
    for name in (name for name, kept in keep.items() if kept == "bf16"):
        to_bf16(net.get_submodule(name))
    shapes = _output_shapes(net, chosen, input_shape) if _needs_shapes(scheme, chosen) else {}
    for name in chosen:
        layer = net.get_submodule(name)
        kind = next(quantized for torchs, quantized in CONVERTERS.items() if isinstance(layer, torchs))
        kind.convert(
            layer, name=name, scheme=scheme.for_layer(name), impl=impl, clock=clock, output_shape=shapes.get(name)
        )
    _close_fast_paths(net)
    fuse(net, impl=impl, norm_input=scheme.norm_input)
    # A pixel's channels are adjacent in every kernel, so they are in the weights.
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return selection


def _settle_shapes(net: nn.Module, input_shape: tuple[int, ...] | None) -> None:
    """Let lazy layers take their shapes from an image of zeros, as in torch from the first batch."""
    lazy = [name for name, module in net.named_modules() if any(map(is_lazy, module.parameters(recurse=False)))]
    if not lazy:
        return
    if input_shape is None:
        raise UserError(f"layer {lazy[0]!r} has no shape yet: pass input_shape, or run one batch through the net first")
    _run_zeros(net, (1, *input_shape))


def _run_zeros(net: nn.Module, shape: tuple[int, ...]) -> None:
    """Run zeros of a shape in evaluation; the modes of the parts stay."""
    modes = {module: module.training for module in net.modules()}
    device = next((p.device for p in net.parameters() if not is_lazy(p)), "cpu")
    with torch.no_grad():
        net.eval()(torch.zeros(shape, device=device))
    for module, training in modes.items():
        module.training = training


def _close_fast_paths(net: nn.Module) -> None:
    """Let torch's encoder layers call quantised layers in evaluation too: their fast path reads the weights instead."""
    for module in net.modules():
        if not any(isinstance(part, QuantLayer) for part in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            # Asked by the fast path alone; 0 is an activation that it does not have.
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            # Nested tensors are for the fast path.
            module.use_nested_tensor = False


def set_impl(net: nn.Module, impl: str) -> None:
    """Let a converted net, or one of its layers, compute by another kernel implementation from now on."""
    for module in net.modules():
        if isinstance(module, QuantLayer):
            module.op = dataclasses.replace(module.op, impl=impl)
        elif hasattr(module, "impl"):
            module.impl = impl  # type: ignore[assignment]


def _needs_shapes(scheme: Scheme, names: tuple[str, ...]) -> bool:
    specs = [scheme.for_layer(name).compensation for name in names]
    return any(spec is not None and spec.by_element for spec in specs)


def _output_shapes(
    net: nn.Module, names: tuple[str, ...], input_shape: tuple[int, ...] | None
) -> dict[str, tuple[int, ...]]:
    if input_shape is None:
        raise UserError("quant.compensation.granularity=element needs the net's input shape: pass input_shape")
    return shapes_of(net, names, (1, *input_shape), lambda inputs, output: output.shape[1:])


def shapes_of(
    net: nn.Module,
    names: Sequence[str],
    shape: tuple[int, ...],
    pick: Callable[[tuple[Tensor, ...], Tensor], torch.Size],
) -> dict[str, tuple[int, ...]]:
    """Run zeros of a shape; return what is picked of the inputs and the output of each layer that is named."""
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: shapes.update({name: tuple(pick(inputs, output))})

    hooks = [net.get_submodule(name).register_forward_hook(remember(name)) for name in names]
    _run_zeros(net, shape)
    for hook in hooks:
        hook.remove()
    return shapes


def compensation_penalty(net: nn.Module) -> Tensor | None:
    """Return the sum of what the compensations add to the loss, or None where none adds anything."""
    found = [m.compensator for m in net.modules() if isinstance(m, QuantLayer) and m.compensator is not None]
    penalties = [p for compensator in found if (p := compensator.penalty()) is not None]
    return torch.stack(penalties).sum() if penalties else None


def parameter_groups(net: nn.Module) -> list[dict[str, object]]:
    """Optimizer groups: the net's parameters, then LAC's at its own rate and what quantisers learn, without decay."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for module in net.modules():
        if isinstance(module, QuantLayer) and module.compensator is not None:
            by_rate.setdefault(module.compensator.spec.learning_rate, []).extend(module.compensator.parameters())
    learned = [p for module in net.modules() if isinstance(module, Quantizer) for p in module.parameters()]
    special = {id(p) for group in (*by_rate.values(), learned) for p in group}
    groups: list[dict[str, object]] = [{"params": [p for p in net.parameters() if id(p) not in special]}]
    groups += [{"params": ps, "lr": rate, "weight_decay": 0.0} for rate, ps in by_rate.items()]
    return groups + ([{"params": learned, "weight_decay": 0.0}] if learned else [])
