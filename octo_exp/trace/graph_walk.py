"""One training step of a microcontroller graph from shapes alone: what runs, in order, and what it reads and makes.

The graph runs whole chains as single operations, so no hook sees its layers; what they do is known instead: the forward
pass in order, and in the backward pass what `mcu.ops` computes and keeps, which is nothing before the first trained
tensor.
"""

import math
from dataclasses import dataclass

from torch import nn

from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.modules import McuBlock, McuConv2d, McuPool, McuResidual
from octo_exp.trace import graph_work
from octo_exp.trace.graph_work import Note
from octo_exp.trace.recorded import Call, Record
from octo_exp.trace.vector import FLOAT_BYTES


@dataclass(slots=True, kw_only=True, eq=False)
class Value:
    """A tensor [N, C, H, W] of `width` bytes an element: the events that make it, use it last and first keep it."""

    layer: str
    shape: tuple[int, ...]
    width: int
    has_gradient: bool
    first: int
    last: int
    uses: int = 0
    saved: int | None = None
    saved_by: str = ""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def save(self, note: Note) -> None:
        """Keep it for the backward pass of an event, unless an earlier one does."""
        if self.saved is None:
            self.saved, self.saved_by = note.event, note.layer


class Walk:
    """Walks a graph on the meta device; `requires_grad` of its parameters says what trains.

    Leaves a `record` (calls of convolutions, vector work, bytes kept and used; no storages), the tensors between the
    steps as `values`, the batch first, and `shares`: layer -> the share of its input channels whose weights train.
    """

    def __init__(self, net: McuNet, batch_shape: tuple[int, ...]) -> None:
        self.net, self.record = net, Record(net=net)
        self.values: list[Value] = []
        self.shares: dict[str, float] = {}
        self._is_integer = net.mode == "integer"
        # Between its steps float_order passes whole numbers in float32.
        self._width = 1 if self._is_integer else FLOAT_BYTES
        # Compiled loops take an image's gradients at a time, or few.
        self._images = 1 if self._is_integer else batch_shape[0]
        self._names = {module: name for name, module in net.named_modules()}
        self._run(batch_shape)

    def _run(self, shape: tuple[int, ...]) -> None:
        name, head = self._names[self.net.input], self.net.head
        batch, _ = self._step(name, [], shape, width=FLOAT_BYTES, passes=False)
        x, note = self._step(name, [batch], shape, width=self._width, passes=False)
        graph_work.enter(note, x.elements, self._width)
        for layer in self.net.layers:
            x = self._layer(x, layer)
        if isinstance(head, McuConv2d):
            self._real(self._conv(x, head), head)
        else:
            self._linear(self._real(x, head), head.linear)
        self._sums()

    def _layer(self, x: Value, layer: nn.Module) -> Value:
        if isinstance(layer, McuPool):
            return self._pool(x, layer)
        if isinstance(layer, McuConv2d):
            return self._conv(x, layer)
        return self._block(x, layer)

    def _block(self, x: Value, block: McuBlock) -> Value:
        body, shortcut = x, x
        for conv in block.body:
            body = self._conv(body, conv)
        for conv in block.shortcut:
            shortcut = self._conv(shortcut, conv)
        return body if block.residual is None else self._add(shortcut, body, block.residual)

    def _step(
        self, layer: str, inputs: list[Value], shape: tuple[int, ...], *, width: int, passes: bool
    ) -> tuple[Value, Note]:
        """Add an event and the tensor that it makes; `passes`: a gradient of that tensor is computed."""
        event = len(self.record.events)
        self.record.events.append(None)
        self.record.first_event.setdefault(layer, event)
        for value in inputs:
            value.last, value.uses = event, value.uses + 1
        made = Value(layer=layer, shape=shape, width=width, has_gradient=passes, first=event, last=event)
        self.values.append(made)
        return made, Note(self.record, layer, event)

    def _conv(self, x: Value, conv: McuConv2d) -> Value:
        shape = (x.shape[0], conv.out_channels, *conv.out_size)
        weight, bias = conv.weight.requires_grad, conv.bias.requires_grad
        wanted = x.has_gradient or weight or bias
        y, note = self._step(self._names[conv], [x], shape, width=self._width, passes=wanted)
        self._call(conv, note, x, y)
        weights = conv.weight.numel()
        graph_work.conv_forward(note, weights, shape, width=self._width, wanted=wanted)
        if wanted:
            graph_work.conv_backward(note, weights, shape, images=self._images, passes=x.has_gradient, bias=bias)
        if x.has_gradient and conv.quantize_gradient:
            graph_work.fake_quantize(note, "grad_input", x.elements)
        if weight:
            self._trained(conv, note, x)
        return y

    def _call(self, conv: McuConv2d, note: Note, x: Value, y: Value) -> None:
        bits = 8 * self._width
        self.record.calls.append(
            Call(
                layer=note.layer,
                module=_stand_in(conv),
                event=note.event,
                input_shape=x.shape,
                output_shape=y.shape,
                needs_grad_input=x.has_gradient,
                needs_grad_weight=conv.weight.requires_grad,
                # Gradients are float32, whatever is rounded afterwards.
                bits={"output": (bits, bits), "grad_input": (32, bits), "grad_weight": (bits, 32)},
                out_elements=y.elements,
                out_bits=bits,
            )
        )

    def _trained(self, conv: McuConv2d, note: Note, x: Value) -> None:
        """What the gradient of a weight keeps: the input itself where it is int8 and whole, else a copy."""
        kept = conv.update.kept
        channels = conv.in_channels if kept is None else len(kept)
        elements = x.elements // conv.in_channels * channels
        if kept is not None:
            self.shares[note.layer] = channels / conv.in_channels
        if kept is None and self._is_integer:
            x.save(note)
        else:
            graph_work.select(note, elements, self._width)
        graph_work.kept_codes(note, elements, batch=x.shape[0], images=self._images)
        if conv.quantize_gradient:
            graph_work.fake_quantize(note, "grad_weight", conv.weight.numel() // conv.in_channels * channels)

    def _add(self, x1: Value, x2: Value, residual: McuResidual) -> Value:
        branches = x1.has_gradient + x2.has_gradient
        y, note = self._step(self._names[residual], [x1, x2], x2.shape, width=self._width, passes=branches > 0)
        graph_work.addition(note, y.shape, width=self._width, branches=branches)
        return y

    def _pool(self, x: Value, layer: McuPool) -> Value:
        pool = layer.step
        sides = ((side + 2 * pool.padding - pool.kernel) // pool.stride + 1 for side in x.shape[2:])
        shape = (*x.shape[:2], *sides)
        y, note = self._step(self._names[layer], [x], shape, width=self._width, passes=x.has_gradient)
        graph_work.pooling(note, pool, x.shape, shape, width=self._width, passes=x.has_gradient)
        return y

    def _real(self, x: Value, head: nn.Module) -> Value:
        """Codes before a float head or after an int8 one -> the numbers that they stand for."""
        shape = (x.shape[0], math.prod(x.shape[1:]))
        y, note = self._step(self._names[head], [x], shape, width=FLOAT_BYTES, passes=x.has_gradient)
        graph_work.dequantize(note, y.elements, width=self._width, passes=x.has_gradient)
        return y

    def _linear(self, x: Value, linear: nn.Linear) -> None:
        trained = linear.weight.requires_grad
        wanted = x.has_gradient or trained or linear.bias.requires_grad
        shape = (x.shape[0], linear.out_features)
        y, note = self._step(self._names[linear], [x], shape, width=FLOAT_BYTES, passes=wanted)
        if trained:
            x.save(note)
        self.record.calls.append(
            Call(
                layer=note.layer,
                module=linear,
                event=note.event,
                input_shape=x.shape,
                output_shape=shape,
                needs_grad_input=x.has_gradient,
                needs_grad_weight=trained,
                bits={},
                out_elements=y.elements,
                out_bits=32,
            )
        )

    def _sums(self) -> None:
        """A block's input that both branches read gets two gradients."""
        for value in self.values:
            if value.has_gradient and value.uses > 1:
                graph_work.gradient_sum(Note(self.record, value.layer, value.first), value.elements)


def _stand_in(conv: McuConv2d) -> nn.Conv2d:
    """The convolution as torch's, on the meta device, with the same weight and no bias: that is for what follows it."""
    g = conv.geometry
    stand_in = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=g.stride,
        padding=g.padding,
        dilation=g.dilation,
        groups=g.groups,
        bias=False,
        device="meta",
    )
    stand_in.weight = conv.weight
    return stand_in
