"""The GEMMs of one call of a convolution or linear layer."""

import math
from collections.abc import Mapping

from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.trace.recorded import Call
from octo_exp.workload import Gemm

_FLOAT_BITS = (32, 32)


def gemms_of(call: Call, grad_input_form: str, shares: Mapping[str, float]) -> list[Gemm]:
    """The GEMMs of the roles that the call owes; see the package's table."""
    module = call.module
    groups, window = _groups(module), _window(module)
    channels_in, channels_out = _channels(module)
    positions = math.prod(call.output_shape) // channels_out
    n_in, n_out = channels_in // groups, channels_out // groups
    x, w = _touched(call) // groups, n_in * window * n_out
    y = positions * n_out
    # role -> m, n, k, products, distinct elements of a, of b
    shapes = {"output": (positions, n_out, n_in * window, groups, x, w)}
    if call.needs_grad_input and grad_input_form == "col2im":
        shapes["grad_input"] = (positions, n_in * window, n_out, groups, y, w)
    elif call.needs_grad_input:
        inputs = math.prod(call.input_shape) // channels_in
        shapes["grad_input"] = (inputs, n_in, n_out * window, groups, y, w)
    trained, products = trained_channels(call, shares)
    if call.needs_grad_weight and trained:
        shapes["grad_weight"] = (trained * window, n_out, positions, products, x * trained // n_in, y)
    gemms = []
    for role, (m, n, k, count, elements_a, elements_b) in shapes.items():
        bits_a, bits_b = call.bits.get(role, _FLOAT_BITS)
        gemms.append(
            Gemm(
                layer=call.layer,
                role=role,
                m=m,
                n=n,
                k=k,
                count=count,
                bits_a=bits_a,
                bits_b=bits_b,
                elements_a=elements_a,
                elements_b=elements_b,
                # A weight's gradient is added to fp32 whatever the layers pass on.
                bits_out=32 if role == "grad_weight" else call.out_bits,
                elements_out=call.out_elements // groups if role == "output" else None,
            )
        )
    return gemms


def trained_channels(call: Call, shares: Mapping[str, float]) -> tuple[int, int]:
    """(input channels a group, groups) whose weights are trained; (0, 0) where none is."""
    share = shares.get(call.layer.partition("#")[0], 1.0)
    if not 0 <= share <= 1:
        raise UserError(f"layer {call.layer!r}: the share of its channels to update must lie in 0..1, got {share}")
    groups = _groups(call.module)
    per_group = _channels(call.module)[0] // groups
    if per_group == 1 and groups > 1:
        kept = _share_of(groups, share)
        return (1, kept) if kept else (0, 0)
    kept = _share_of(per_group, share)
    return (kept, groups) if kept else (0, 0)


def _share_of(channels: int, share: float) -> int:
    # A share such as 0.29 lies a little below itself in floating point.
    return math.floor(channels * share + 1e-9)


def trained_weights(call: Call, shares: Mapping[str, float]) -> int:
    """Weights of the layer that its gradient covers."""
    channels, groups = trained_channels(call, shares)
    return channels * groups * _window(call.module) * (_channels(call.module)[1] // _groups(call.module))


def is_unfolded(module: nn.Module) -> bool:
    """Whether grad_input of the col2im form has columns to add up: not where every window is one element."""
    return isinstance(module, nn.Conv2d) and (_window(module) > 1 or tuple(module.stride) != (1, 1))


def _groups(module: nn.Conv2d | nn.Linear) -> int:
    return module.groups if isinstance(module, nn.Conv2d) else 1


def _window(module: nn.Conv2d | nn.Linear) -> int:
    return math.prod(module.kernel_size) if isinstance(module, nn.Conv2d) else 1


def _channels(module: nn.Conv2d | nn.Linear) -> tuple[int, int]:
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels
    return module.in_features, module.out_features


def _touched(call: Call) -> int:
    """Distinct input elements that some window meets: padding is not read, a stride may pass over rows."""
    module, shape = call.module, call.input_shape
    if not isinstance(module, nn.Conv2d):
        return math.prod(shape)
    touched = math.prod(shape[:-2])
    for axis in range(2):
        size, outputs, stride = shape[axis - 2], call.output_shape[axis - 2], module.stride[axis]
        before = _padding_before(module)[axis]
        places = {
            out * stride - before + tap * module.dilation[axis]
            for out in range(outputs)
            for tap in range(module.kernel_size[axis])
        }
        touched *= sum(0 <= place < size for place in places)
    # Windows that lie in the padding alone read a zero.
    return touched or math.prod(shape[:-2])


def _padding_before(module: nn.Conv2d) -> tuple[int, int]:
    """Rows above and columns to the left."""
    # torch keeps it, for all three ways of giving a padding, as (left, right, top, bottom).
    left, _, top, _ = module._reversed_padding_repeated_twice
    return (top, left)
