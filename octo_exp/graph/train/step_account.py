"""One training step of an int8 graph from shapes alone: what runs, in order, and what it reads and makes.

The graph runs whole chains as single operations, so no hook sees its layers; what they do is known instead. What trains
is what `update` and `requires_grad` say. GEMMs are int8 times int8 in the forward pass, whose sums leave as int8; in
the backward pass, which is nothing before the first trained tensor, float32 gradients times int8, in float32;
grad_weight of the kept input channels only (depthwise: of the kept channels). In the mode `float_order` all operands
are float32. Work beside them: `graph_accounts`.

Memory is what a run holds: weights and biases are float32 masters, frozen ones as well, and become int8 codes while
their layer runs; activations are int8; kept for the backward pass are what `integer` keeps: bits of what was not
clamped where a gradient passes, int8 codes of the kept channels where a weight trains, and the float head's input.
Gradients and optimizer state are counted for trained values alone, as a device would hold them: the run's own tensors
have zeros for the channels that are not kept.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from octo_exp.graph.train import graph_accounts as work
from octo_exp.graph.train.heads import FloatHead, IntHead
from octo_exp.graph.train.modules import McuBlock, McuConv2d, McuPool, McuResidual
from octo_exp.workload import FLOAT_BYTES, Account, Record, Value, trained_weights


@dataclass(slots=True, kw_only=True, eq=False)
class Codes(Value):
    """A tensor of the graph, [N, C, H, W] or [N, F], and how often it is read."""

    shape: tuple[int, ...]
    uses: int = 0

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient of it is computed."""
        return self.gradient_bytes > 0


class StepAccount:
    """Walks a graph and leaves its `record`; `names`: module -> its name in the net."""

    def __init__(self, names: Mapping[nn.Module, str], batch_shape: tuple[int, ...], *, mode: str) -> None:
        self.record, self._names = Record(), names
        self._made: list[Codes] = []
        self._is_integer = mode == "integer"
        # Between its steps float_order passes whole numbers in float32.
        self._width = 1 if self._is_integer else FLOAT_BYTES
        # Compiled loops take an image's gradients at a time, or few.
        self._images = 1 if self._is_integer else batch_shape[0]
        self._shape = batch_shape

    def run(
        self, entry: nn.Module, layers: Iterable[McuConv2d | McuPool | McuBlock], head: FloatHead | IntHead
    ) -> Record:
        """Return the step's record."""
        batch, _ = self._step(entry, [], self._shape, width=FLOAT_BYTES, passes=False)
        x, account = self._step(entry, [batch], self._shape, width=self._width, passes=False)
        work.enter(account, self._width)
        for layer in layers:
            x = self._layer(x, layer)
        if isinstance(head, FloatHead):
            self._linear(self._real(x, head), head.linear)
        else:
            self._real(self._conv(x, head), head)
        self._sums()
        return self.record

    def _layer(self, x: Codes, layer: McuConv2d | McuPool | McuBlock) -> Codes:
        if isinstance(layer, McuPool):
            return self._pool(x, layer)
        return self._conv(x, layer) if isinstance(layer, McuConv2d) else self._block(x, layer)

    def _block(self, x: Codes, block: McuBlock) -> Codes:
        body, shortcut = x, x
        for conv in block.body:
            body = self._conv(body, conv)
        for conv in block.shortcut:
            shortcut = self._conv(shortcut, conv)
        return body if block.residual is None else self._add(shortcut, body, block.residual)

    def _step(
        self, module: nn.Module, inputs: list[Codes], shape: tuple[int, ...], *, width: int, passes: bool
    ) -> tuple[Codes, Account]:
        """Add an event and the tensor that it makes; `passes`: a gradient of that tensor is computed."""
        layer, elements = self._names[module], math.prod(shape)
        event = self.record.begin(layer, inputs)
        for value in inputs:
            value.uses += 1
        gradient = FLOAT_BYTES * elements if passes else 0
        made = Codes(layer=layer, shape=shape, bytes=width * elements, gradient_bytes=gradient, first=event, last=event)
        self.record.values.append(made)
        self._made.append(made)
        return made, self._account(inputs[0] if inputs else made, layer, event, passes=passes)

    def _account(self, x: Codes, layer: str, event: int, *, passes: bool) -> Account:
        account = Account(
            layer=layer,
            call=layer,
            x_shape=x.shape,
            x_bits=8 * self._width,
            grad_input=x.has_gradient,
            differentiable=passes,
        )
        self.record.accounts.append((event, account))
        return account

    def _conv(self, x: Codes, conv: McuConv2d) -> Codes:
        shape, weights = (x.shape[0], conv.out_channels, *conv.out_size), conv.weight.numel()
        weight = conv.weight.requires_grad and conv.update.train_weight
        bias = conv.bias.requires_grad and conv.update.train_bias
        wanted = x.has_gradient or weight or bias
        y, account = self._step(conv, [x], shape, width=self._width, passes=wanted)
        account.products.append(work.product_of(account, conv, shape, trains=weight))
        work.conv_forward(account, weights, shape, width=self._width)
        if wanted:
            work.conv_backward(account, weights, shape, images=self._images, bias=bias)
        if x.has_gradient and conv.quantize_gradient:
            work.fake_quantize(account, "grad_input", account.x_elements)
        if weight:
            self._kept(x, conv, account, y.first)
        self.record.coded.add(account.layer)
        self._trains(account, weight=weight, bias=bias * conv.out_channels)
        return y

    def _kept(self, x: Codes, conv: McuConv2d, account: Account, event: int) -> None:
        """What the gradient of a weight keeps: the input itself where it is int8 and whole, else a copy."""
        kept = conv.update.kept
        channels = conv.in_channels if kept is None else len(kept)
        elements = account.x_elements // conv.in_channels * channels
        if kept is not None:
            self.record.shares[account.layer] = channels / conv.in_channels
        if kept is None and self._is_integer:
            x.save(event, account.layer)
        else:
            work.select(account, elements, self._width)
        work.kept_codes(account, elements, images=self._images)
        if conv.quantize_gradient:
            work.fake_quantize(account, "grad_weight", conv.weight.numel() // conv.in_channels * channels)

    def _trains(self, account: Account, *, weight: bool, bias: int) -> None:
        (product,) = account.products
        elements = bias + (trained_weights(product, self.record.shares) if weight else 0)
        if elements:
            self.record.trained[account.layer] = elements

    def _add(self, x1: Codes, x2: Codes, residual: McuResidual) -> Codes:
        branches = x1.has_gradient + x2.has_gradient
        y, account = self._step(residual, [x1, x2], x2.shape, width=self._width, passes=branches > 0)
        work.addition(account, y.shape, width=self._width, branches=branches)
        return y

    def _pool(self, x: Codes, layer: McuPool) -> Codes:
        pool = layer.step
        sides = ((side + 2 * pool.padding - pool.kernel) // pool.stride + 1 for side in x.shape[2:])
        shape = (*x.shape[:2], *sides)
        y, account = self._step(layer, [x], shape, width=self._width, passes=x.has_gradient)
        work.pooling(account, pool, shape, width=self._width)
        return y

    def _real(self, x: Codes, head: nn.Module) -> Codes:
        """Codes before a float head or after an int8 one -> the numbers that they stand for."""
        shape = (x.shape[0], math.prod(x.shape[1:]))
        y, account = self._step(head, [x], shape, width=FLOAT_BYTES, passes=x.has_gradient)
        work.dequantize(account, width=self._width)
        return y

    def _linear(self, x: Codes, linear: nn.Linear) -> None:
        weight, bias = linear.weight.requires_grad, linear.bias.requires_grad
        shape, passes = (x.shape[0], linear.out_features), x.has_gradient or weight or bias
        y, account = self._step(linear, [x], shape, width=FLOAT_BYTES, passes=passes)
        if weight:
            x.save(y.first, account.layer)
        account.multiply(linear)
        self._trains(account, weight=weight, bias=bias * linear.out_features)

    def _sums(self) -> None:
        """A block's input that both branches read gets two gradients."""
        for value in self._made:
            if value.has_gradient and value.uses > 1:
                work.gradient_sum(self._account(value, value.layer, value.first, passes=True))
