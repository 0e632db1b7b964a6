"""A float network -> its plan: torch.fx records the operations, and this puts them into layers, from output to input.

A graph is one line of layers with blocks on it: where a tensor goes two ways, the ways meet again in one addition, and
each of them holds convolutions only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node, symbolic_trace

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate.norm_fold import fold
from octo_exp.graph.calibrate.plan import NO_BOUNDS, Block, Conv, Layer, Plan
from octo_exp.graph.calibrate.traced_ops import (
    Clamp,
    Keep,
    Norm,
    Sum,
    Weights,
    Window,
    place,
    read,
    refuse,
    shape_of,
    size_of,
    sources,
)
from octo_exp.graph.calibrate.unwrapped import plain_copy, without_hooks
from octo_exp.graph.parts import PoolSpec


class _Shapes(Interpreter):
    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


def trace(net: nn.Module, images: Tensor) -> GraphModule:
    """Return a copy of the net in eval mode, its operations recorded with the shapes that two of the images give."""
    plain, two = plain_copy(net), images[:1].repeat(2, 1, 1, 1)
    two = two.to(next(plain.parameters(), images).device)
    with torch.no_grad(), _fitting(images):
        without_hooks(plain, two)
    try:
        traced = symbolic_trace(plain)
    except Exception as error:
        why = f"the network's forward cannot be recorded ({_first_line(error)}); it must not branch on values"
        raise UserError(why) from error
    with torch.no_grad(), _fitting(images):
        _Shapes(traced).run(two)
    return traced


@contextmanager
def _fitting(images: Tensor) -> Iterator[None]:
    """Say in one line that the images do not fit, where the network fails on them."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = f"calibration images {list(images.shape)} do not fit the network ({_first_line(error)})"
        raise UserError(why) from error


def _first_line(error: Exception) -> str:
    """The message that torch gave; fx adds lines of its own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def plan_of(traced: GraphModule) -> Plan:
    """Return the layers of a traced network; UserError names what an int8 graph does not have."""
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    (end,) = next(node for node in traced.graph.nodes if node.op == "output").args
    if len(inputs) != 1 or not isinstance(end, Node):
        raise UserError("the network must map one batch of images to one tensor of logits")
    (start,) = inputs
    _, channels, height, width = size_of(start) or (0, 0, 0, 0)
    if height != width:
        raise UserError(f"images must be square, got {height}x{width}")
    layers = _Walk(traced).layers(start, end)
    if not layers or not isinstance(layers[-1], Conv) or layers[-1].out_size != 1:
        raise UserError(
            "the network must end in a linear layer that gives the logits; leave pools and softmax to others"
        )
    return Plan(node=start.name, channels=channels, size=height, layers=tuple(layers[:-1]), classifier=layers[-1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fork:
    """The addition at `node` of what two branches make of one tensor."""

    node: Node
    branches: tuple[list[Node], list[Node]]


class _Walk:
    """Nodes between two tensors, gathered from the output to the input, as layers from the input to the output."""

    def __init__(self, net: GraphModule) -> None:
        # An operation is read once, where it is first met.
        self.read = cache(partial(read, net=net))
        self.users: dict[Node, list[Node]] = {}
        for node in net.graph.nodes:
            for source in sources(node):
                # What asks for a shape reads no value.
                if size_of(node) is not None or node.op == "output":
                    self.users.setdefault(source, []).append(node)

    def layers(self, start: Node, end: Node) -> list[Layer]:
        """Return the layers from the tensor `start` to the tensor `end`."""
        line: list[Node | _Fork] = []
        node, ways = end, 1
        while node is not start:
            if len(self.users[node]) != ways:
                self._refuse_fork(node)
            if isinstance(self.read(node), Sum):
                fork, node = self._fork(node)
                line.append(fork)
                ways = 2
            else:
                line.append(node)
                (node,), ways = sources(node), 1
        if len(self.users[start]) != ways:
            self._refuse_fork(start)
        return self._assemble(start, line[::-1])

    def _refuse_fork(self, node: Node) -> None:
        refuse(node, f"a tensor with {len(self.users[node])} readers", "two ways that meet in one addition are known")

    def _fork(self, node: Node) -> tuple[_Fork, Node]:
        """(the fork, the tensor at which it begins)."""
        (first, a), (second, b) = (self._branch(source) for source in sources(node))
        if a is not b:
            refuse(node, "an addition", "what it adds does not come from one tensor by convolutions alone")
        return _Fork(node=node, branches=(first, second)), a

    def _branch(self, node: Node) -> tuple[list[Node], Node]:
        nodes: list[Node] = []
        while len(self.users[node]) == 1 and node.op != "placeholder":
            if isinstance(self.read(node), Sum):
                refuse(node, "an addition", "it lies within a branch of another")
            nodes.append(node)
            (node,) = sources(node)
        return nodes[::-1], node

    def _assemble(self, start: Node, line: Sequence[Node | _Fork]) -> list[Layer]:
        layers: list[Layer] = []
        # Channels and side of the image that passes; a flattened one keeps them, for the linear layer after it.
        _, channels, side, *_ = (*shape_of(start), 1, 1)
        for item in line:
            if isinstance(item, _Fork):
                layers.append(self._block(item, channels, side))
            else:
                _append(layers, item, self.read(item), channels, side)
            last = layers[-1] if layers else None
            channels, side = (channels, side) if last is None else (last.channels, last.out_size)
        return layers

    def _block(self, fork: _Fork, channels: int, side: int) -> Block:
        ways = []
        for nodes in fork.branches:
            convs: list[Any] = []
            inner = (channels, side)
            for node in nodes:
                _append(convs, node, self.read(node), *inner)
                inner = (convs[-1].channels, convs[-1].out_size) if convs else inner
            if not all(isinstance(conv, Conv) for conv in convs):
                refuse(fork.node, "a branch with a pool", "a branch holds convolutions only")
            ways.append((tuple(convs), inner))
        # The shortcut is the shorter way.
        (shortcut, inner), (body, made) = sorted(ways, key=lambda way: len(way[0]))
        if inner != made or not body:
            refuse(fork.node, "an addition", f"the ways make {inner} and {made} (channels, side)")
        name = f"{place(fork.node)} (addition)"
        return Block(name=name, node=fork.node.name, body=body, shortcut=shortcut, channels=made[0], out_size=made[1])


def _append(layers: list[Any], node: Node, op: object, channels: int, side: int) -> None:
    """Add an operation on an image [channels, side, side] as a layer, or to the layer it belongs to."""
    if isinstance(op, Weights):
        layers.append(_conv(node, op, channels, side))
    elif isinstance(op, Window):
        if op.kernel > 1 or op.stride > 1:
            out = _out(node)
            layers.append(PoolSpec(channels=channels, in_size=side, out_size=out, **asdict(op)))
    elif isinstance(op, Norm):
        last = layers[-1] if layers else None
        if not isinstance(last, Conv) or last.bounds != NO_BOUNDS or last.channels != len(op.factor):
            refuse(node, "BatchNorm", "it must directly follow a convolution or a linear layer")
        weight, bias = fold(last.weight, last.bias, op.factor, op.offset)
        layers[-1] = replace(last, weight=weight, bias=bias, node=node.name)
    elif isinstance(op, Clamp):
        _clamp(layers, node, op)
    elif not isinstance(op, Keep):
        refuse(node, "an addition", "it is not one of two ways from one tensor")


def _conv(node: Node, op: Weights, channels: int, side: int) -> Conv:
    weight, out = op.weight, _out(node)
    if weight.dim() == 2:
        # A flattened [C, S, S] or [C] is what a kernel as large as the image reads.
        weight, out = weight.reshape(len(weight), channels, side, side), 1
    return Conv(
        name=place(node),
        node=node.name,
        weight=weight,
        bias=op.bias,
        stride=op.stride,
        padding=op.padding,
        groups=op.groups,
        in_size=side,
        out_size=out,
    )


def _out(node: Node) -> int:
    """Side of the image a node makes; a tensor [N, C] counts as [N, C, 1, 1]."""
    _, _, height, width = (*shape_of(node), 1, 1)[:4]
    return height if height == width else refuse(node, "an image", f"it is {height}x{width}, not square")


def _clamp(layers: list[Any], node: Node, op: Clamp) -> None:
    """Give an activation to the convolution or addition before it; max pools between them commute with it."""
    k = len(layers) - 1
    while k >= 0 and isinstance(layers[k], PoolSpec) and layers[k].kind == "max":
        k -= 1
    if k < 0 or isinstance(layers[k], PoolSpec):
        refuse(node, "an activation", "it must follow a convolution, a linear layer or an addition")
    low, high = layers[k].bounds
    layers[k] = replace(layers[k], bounds=(max(low, op.low), min(high, op.high)))
