"""What a node of a traced network does, as one of a few operations; UserError for what an int8 graph does not have."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate.norm_fold import norm_factors, weight_and_bias


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """A convolution, weight [O, I/groups, KH, KW], or a linear layer, weight [O, F]; float64."""

    weight: Tensor
    bias: Tensor
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """x * factor + offset, one number a channel."""

    factor: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """ReLU and ReLU6: values within [low, high]."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Square pooling, kind max or average."""

    kind: str
    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Nothing in evaluation, or a change of shape from [N, C, S, S] to [N, C * S * S]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Two tensors added."""


Op = Weights | Norm | Clamp | Window | Keep | Sum


def size_of(node: Node) -> tuple[int, ...] | None:
    """Shape of the tensor a node makes, for a batch of two; None where it makes none."""
    return node.meta.get("shape")


def shape_of(node: Node) -> tuple[int, ...]:
    """The same; () where it makes none."""
    return size_of(node) or ()


def sources(node: Node) -> list[Node]:
    """Nodes whose tensors a node reads; those that only ask for a size do not count."""
    return [n for n in node.all_input_nodes if size_of(n) is not None]


def place(node: Node) -> str:
    """Module that a node belongs to, by its name in the network."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(node.target) if node.op == "call_module" else str(stack[-1][0] or "forward") if stack else "forward"


def refuse(node: Node, what: str, why: str) -> NoReturn:
    """Raise the UserError that names the operation and its module."""
    raise UserError(f"{place(node)}: {what} cannot become int8: {why}")


def read(node: Node, net: GraphModule) -> Op:
    """Return the operation of a node; UserError names one that has no int8 form."""
    target = net.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    key = type(target) if node.op == "call_module" else target
    name = key if isinstance(key, str) else getattr(key, "__name__", str(key))
    if node.op == "get_attr" or key not in _READERS:
        known = "convolution, linear, BatchNorm, ReLU, ReLU6, max and average pooling, dropout, flatten, addition"
        refuse(node, "a parameter of its own" if node.op == "get_attr" else name, f"a graph has {known}")
    names, reader = _READERS[key]
    if node.op == "call_module":
        arguments = {"module": target, **{n: getattr(target, n) for n in names[1:]}}
    else:
        arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return reader(node, name, arguments)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _square(node: Node, name: str, what: str, value: Any) -> int:
    pair = _pair(value)
    return pair[0] if pair[0] == pair[1] else refuse(node, name, f"its {what} {pair} is not square")


def _conv(node: Node, name: str, a: dict[str, Any]) -> Op:
    conv: nn.Conv2d = a["module"]
    if conv.padding_mode != "zeros" or _pair(conv.dilation) != (1, 1):
        refuse(node, name, "it needs zero padding and no dilation")
    padding = conv.padding
    if isinstance(padding, str):
        if padding == "same" and any(k % 2 == 0 for k in conv.kernel_size):
            refuse(node, name, "padding='same' of an even kernel is not symmetric")
        padding = tuple(k // 2 if padding == "same" else 0 for k in conv.kernel_size)
    weight, bias = weight_and_bias(conv)
    stride = _square(node, name, "stride", conv.stride)
    return Weights(weight=weight, bias=bias, stride=stride, padding=_pair(padding), groups=conv.groups)


def _linear(node: Node, name: str, a: dict[str, Any]) -> Op:
    if len(shape_of(sources(node)[0])) != 2:
        refuse(node, name, "its input is not [N, features]; flatten it first")
    weight, bias = weight_and_bias(a["module"])
    return Weights(weight=weight, bias=bias)


def _norm(node: Node, name: str, a: dict[str, Any]) -> Op:
    found = norm_factors(a["module"])
    if found is None:
        refuse(node, name, "it has no running statistics")
    return Norm(factor=found[0], offset=found[1])


def _clamp(high: float) -> Callable[[Node, str, dict[str, Any]], Op]:
    return lambda node, name, a: Clamp(low=0.0, high=high)


def _pool(kind: str) -> Callable[[Node, str, dict[str, Any]], Op]:
    def reader(node: Node, name: str, a: dict[str, Any]) -> Op:
        kernel, padding = (_square(node, name, w, a.get(w, 0)) for w in ("kernel_size", "padding"))
        stride = _square(node, name, "stride", a.get("stride") or kernel)
        if _pair(a.get("dilation", 1)) != (1, 1) or a.get("divisor_override") or (padding and kind == "average"):
            refuse(node, name, "it needs no dilation, no divisor, and no padding where it averages")
        window = Window(kind=kind, kernel=kernel, stride=stride, padding=padding)
        side, out = (shape_of(n)[-1] for n in (sources(node)[0], node))
        if out != (side + 2 * padding - kernel) // stride + 1:
            refuse(node, name, f"its last window leaves the image of {side}; set ceil_mode=False")
        return window

    return reader


def _adaptive(kind: str) -> Callable[[Node, str, dict[str, Any]], Op]:
    def reader(node: Node, name: str, a: dict[str, Any]) -> Op:
        (side, out) = (shape_of(n)[-1] for n in (sources(node)[0], node))
        if side % out:
            refuse(node, name, f"{side} pixels do not divide into {out} equal windows")
        return Window(kind=kind, kernel=side // out, stride=side // out, padding=0)

    return reader


def _mean(node: Node, name: str, a: dict[str, Any]) -> Op:
    shape, dims = shape_of(sources(node)[0]), a.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or [])
    if len(shape) != 4 or sorted(d % 4 for d in dims) != [2, 3]:
        refuse(node, name, "only the mean over both sides of an image is a pool")
    return Window(kind="average", kernel=shape[-1], stride=shape[-1], padding=0)


def _keep(node: Node, name: str, a: dict[str, Any]) -> Op:
    before, after = shape_of(sources(node)[0]), shape_of(node)
    if after not in (before, (before[0], math.prod(before[1:]))):
        refuse(node, name, f"it makes {list(after)} of {list(before)}, and only [N, C * H * W] is known")
    return Keep()


def _dropout(node: Node, name: str, a: dict[str, Any]) -> Op:
    return (
        refuse(node, name, "it drops values in eval mode too; pass training=self.training")
        if a.get("training", True)
        else Keep()
    )


def _sum(node: Node, name: str, a: dict[str, Any]) -> Op:
    shapes = {size_of(n) for n in sources(node)}
    if len(sources(node)) != 2 or len(shapes) != 1 or a.get("alpha", 1) != 1:
        refuse(node, name, "it needs two different tensors of one shape")
    return Sum()


_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
# Key -> (names of the arguments in their order, reader).
_READERS: dict[Any, tuple[tuple[str, ...], Callable[[Node, str, dict[str, Any]], Op]]] = {
    nn.Conv2d: (("input",), _conv),
    nn.Linear: (("input",), _linear),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), (("input",), _norm)),
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"), (("input",), _clamp(math.inf))),
    **dict.fromkeys((nn.ReLU6, F.relu6), (("input",), _clamp(6.0))),
    **dict.fromkeys((nn.MaxPool2d, F.max_pool2d, torch.max_pool2d), (_MAX, _pool("max"))),
    **dict.fromkeys((nn.AvgPool2d, F.avg_pool2d), (_AVERAGE, _pool("average"))),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d), (("input", "output_size"), _adaptive("average"))),
    **dict.fromkeys((nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d), (("input", "output_size"), _adaptive("max"))),
    **dict.fromkeys((torch.mean, "mean"), (("input", "dim", "keepdim"), _mean)),
    **dict.fromkeys((nn.Flatten, torch.flatten, "flatten", "view", "reshape", "contiguous"), (("input",), _keep)),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), (("input",), _keep)),
    **dict.fromkeys((F.dropout, F.dropout2d), (("input", "p", "training"), _dropout)),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), (("input", "other"), _sum)),
}
