"""From a network to its workload: the one bridge between modules and the cost model.

The network runs once on the meta device, in evaluation mode and without data, while hooks note the shapes that meet
each `nn.Conv2d` and `nn.Linear`. Autograd's own bookkeeping says which gradients a step computes: an input that depends
on nothing trainable needs none, which drops grad_input of the first layer and of whatever follows only frozen ones.
A convolution of B images [Ci, H, W] to [Co, OH, OW], kernel kh x kw, g groups, becomes g GEMMs [M, K] x [K, N]:

    role                   M              N              K
    output                 B*OH*OW        Co/g           Ci/g*kh*kw
    grad_input, col2im     B*OH*OW        Ci/g*kh*kw     Co/g
    grad_input, im2col     B*H*W          Ci/g           Co/g*kh*kw
    grad_weight            Ci/g*kh*kw     Co/g           B*OH*OW

A linear layer is a 1x1 convolution whose positions are all extents but the last.
"""

import copy
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from octo_exp.errors import UserError
from octo_exp.hw import GRAD_INPUT_FORMS, Gemm, Workload
from octo_exp.hw.fields import check_number
from octo_exp.nn.activation import Activation

_COUNTED = (nn.Conv2d, nn.Linear)
_UNSUPPORTED = (
    nn.Conv1d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Bilinear,
)
_FLOAT_BITS = (32, 32)


def trace(
    net: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_size: int,
    grad_input_form: str,
    frozen: frozenset[str] = frozenset(),
) -> Workload:
    """Return the GEMMs of one training step of `net` on `batch_size` inputs of shape `input_shape`.

    The net is neither changed nor run on data. Quantized layers are subclasses of `nn.Conv2d` and `nn.Linear` and are
    traced by their float forward; an attribute `operand_bits`, role -> (bits_a, bits_b), tells their operands' widths.
    A layer that is called again appears again, as `name#2`.

    Args:
        net: any module whose MACs lie in `nn.Conv2d` (padding, stride, dilation, groups) and `nn.Linear`.
        input_shape: shape of one input, without the batch, e.g. (C, H, W).
        batch_size: inputs in a step.
        grad_input_form: col2im | im2col.
        frozen: names of modules whose parameters are not trained, besides those that do not require gradients.

    Raises:
        UserError: a layer or an operation that is not counted, a name in `frozen` that the net lacks, an input shape
            that does not fit.

    """
    if grad_input_form not in GRAD_INPUT_FORMS:
        raise UserError(f"grad_input_form must be one of {', '.join(GRAD_INPUT_FORMS)}, got {grad_input_form!r}")
    check_number("trace", "batch_size", batch_size, whole=True)
    _check_layers(net)
    # A trainer's hooks may run inside inference mode, where nothing would ever require a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        twin = _meta_copy(net).eval()
        _freeze(twin, frozen)
        calls = _run(twin, (batch_size, *input_shape))
    gemms = tuple(gemm for call in calls for gemm in _gemms(call, grad_input_form))
    if not gemms:
        raise UserError(f"{type(net).__name__} runs no nn.Conv2d and no nn.Linear: there is nothing to price")
    return Workload(gemms=gemms, batch_size=batch_size, grad_input_form=grad_input_form)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One execution of a counted layer."""

    layer: str
    module: nn.Conv2d | nn.Linear
    input_elements: int
    output_elements: int
    needs_grad_input: bool


def _check_layers(net: nn.Module) -> None:
    for name, module in net.named_modules():
        title = f"layer {name!r} ({type(module).__name__})"
        if isinstance(module, _UNSUPPORTED):
            raise UserError(f"{title} cannot be priced: only nn.Conv2d and nn.Linear are counted")
        if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise UserError(f"{title} has no shape yet: run one batch through the net first")


def _meta_copy(net: nn.Module) -> nn.Module:
    """Copy the net with its tensors on the meta device (no data, no memory), without hooks, layers run as float."""
    memo: dict[int, Any] = {}
    for module in net.modules():
        members = vars(module)
        for tensor in (*module._parameters.values(), *module._buffers.values(), *members.values()):
            if isinstance(tensor, torch.Tensor):
                memo[id(tensor)] = _meta_tensor(tensor)
        # A hook would run on the copy as well, and a callback's method would drag its owner, the trainer, along.
        memo.update((id(value), type(value)()) for name, value in members.items() if name.endswith("_hooks"))
        memo.update((id(value), value) for value in members.values() if _is_foreign(value))
    twin = copy.deepcopy(net, memo)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = MethodType(nn.Conv2d.forward, module)  # type: ignore[method-assign]
            module._conv_forward = MethodType(nn.Conv2d._conv_forward, module)  # type: ignore[method-assign]
        elif isinstance(module, nn.Linear):
            module.forward = MethodType(nn.Linear.forward, module)  # type: ignore[method-assign]
        elif isinstance(module, Activation):
            # The float forward of a layer does no ReLU and no pooling.
            module.forward = MethodType(Activation.as_float, module)  # type: ignore[method-assign]
    return twin


def _is_foreign(value: Any) -> bool:
    """Whether an attribute is a callable from outside of the net, which the copy shares."""
    return callable(value) and not isinstance(getattr(value, "__self__", value), nn.Module)


def _meta_tensor(tensor: torch.Tensor) -> torch.Tensor:
    twin = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(twin, requires_grad=tensor.requires_grad)
    return twin.requires_grad_(tensor.requires_grad)


def _freeze(net: nn.Module, frozen: frozenset[str]) -> None:
    modules = dict(net.named_modules())
    for name in sorted(frozen):
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its first layer is {next(filter(None, modules))!r}"
            raise UserError(f"cannot freeze {name!r}: the net has no such layer; {hint}")
        modules[name].requires_grad_(False)


def _run(net: nn.Module, shape: tuple[int, ...]) -> list[_Call]:
    floats = (parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())
    example = torch.empty(shape, dtype=next(floats, torch.float32), device="meta")
    recorder = _Recorder(net)
    try:
        with recorder:
            net(example)
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot trace {recorder.where()} on an input of shape {list(shape)}: {reason}") from error
    return recorder.calls


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the calls of counted layers, and refuses a multiplication of matrices outside of them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self._names = {module: name for name, module in net.named_modules()}
        self._running: list[nn.Module] = []
        self._seen: Counter[str] = Counter()
        for module in self._names:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave, with_kwargs=True)

    def where(self) -> str:
        """Name of the innermost running module, for messages."""
        module = self._running[-1] if self._running else next(iter(self._names))
        name = self._names[module]
        return f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._overloadpacket in flop_registry and not isinstance(self._running[-1], _COUNTED):
            raise UserError(
                f"{self.where()} computes {func._overloadpacket} itself, which is not priced: "
                "only the MACs of nn.Conv2d and nn.Linear are counted"
            )
        return func(*args, **(kwargs or {}))

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._running.append(module)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._running.pop()
        if not isinstance(module, _COUNTED):
            return
        given = args[0] if args else kwargs["input"]
        name = self._names[module]
        self._seen[name] += 1
        times = self._seen[name]
        self.calls.append(
            _Call(
                layer=name if times == 1 else f"{name}#{times}",
                module=module,
                input_elements=given.numel(),
                output_elements=output.numel(),
                needs_grad_input=given.requires_grad,
            )
        )


def _gemms(call: _Call, grad_input_form: str) -> list[Gemm]:
    module = call.module
    if isinstance(module, nn.Conv2d):
        groups, window = module.groups, module.kernel_size[0] * module.kernel_size[1]
        channels_in, channels_out = module.in_channels, module.out_channels
    else:
        groups, window = 1, 1
        channels_in, channels_out = module.in_features, module.out_features
    positions = call.output_elements // channels_out
    n_in, n_out = channels_in // groups, channels_out // groups
    shapes = {"output": (positions, n_out, n_in * window)}
    if call.needs_grad_input and grad_input_form == "col2im":
        shapes["grad_input"] = (positions, n_in * window, n_out)
    elif call.needs_grad_input:
        shapes["grad_input"] = (call.input_elements // channels_in, n_in, n_out * window)
    if module.weight.requires_grad:
        shapes["grad_weight"] = (n_in * window, n_out, positions)
    widths: Mapping[str, tuple[int, int]] = getattr(module, "operand_bits", None) or {}
    gemms = []
    for role, (m, n, k) in shapes.items():
        bits_a, bits_b = widths.get(role, _FLOAT_BITS)
        gemms.append(Gemm(layer=call.layer, role=role, m=m, n=n, k=k, count=groups, bits_a=bits_a, bits_b=bits_b))
    return gemms
