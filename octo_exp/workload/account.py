"""How a module accounts for itself: what one call of it multiplies, does beside that, makes and keeps.

A module with a method `account` is asked instead of run when a network is priced:

    def account(self, account):
        y = account.multiply(self)
        account.vector("output", "elementwise", math.prod(y))
        account.make(y)

Operations are those on single elements; the counts per element are this project's own:

    quantize     4: range, scale, round, clamp; reads 4 bytes, writes one
    rescale      2 in the forward pass (scale, offset), 1 in the backward passes; of results as they leave the array
    elementwise  1 of each kernel that torch runs, and as many again in the backward pass
    pool         1 for every input element (a comparison or an addition); the backward pass as many
    norm         4 (mean, variance, normalize, scale); the backward pass 8
    col2im       1 addition for every element of dcol
    optimizer    as many as its kernels touch elements

What a fused block does to its own GEMM's result moves no bytes but its mask's; the gradient that it spreads over its
windows is written out. dcol is written and read back, an image at a time, as if no part of it stayed on chip.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from octo_exp.base.errors import UserError
from octo_exp.workload.epilogue import Epilogue, leaving
from octo_exp.workload.products import Product, is_convolution, output_shape
from octo_exp.workload.values import BUFFER_KINDS, FLOAT_BYTES, ROLES, Gemm, VectorWork

QUANTIZE_OPS = 4
RESCALE_OPS = 2
NORM_OPS, NORM_BACKWARD_OPS = 4, 8
# A tensor between layers: codes, bf16, float32.
_BITS = (8, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes that a call makes: kept for its backward pass, or used on the way, in the forward or the backward pass."""

    kind: str
    bytes: int
    kept: bool = False
    backward: bool = False


class Account:
    """One call of a layer: the facts that it is asked with, and what it says of itself.

    Attributes:
        layer: the module's name in the network; call: the same, `name#2` where it is called again.
        x_shape, x_bits: shape of the input, and width of its elements.
        grad_input: whether the input's gradient is owed.
        differentiable: whether any gradient is, of the input or a parameter.
        autocast: whether float products run in bf16.
        y_shape, y_bits: what it makes; y_shape is None where it passes its input on.
        products, gemms, work, held: what it has said; keeps_input: whether the input itself is kept.

    """

    def __init__(
        self,
        *,
        layer: str,
        call: str,
        x_shape: tuple[int, ...],
        x_bits: int,
        grad_input: bool,
        differentiable: bool,
        autocast: bool = False,
    ) -> None:
        self.layer, self.call, self.x_shape, self.x_bits = layer, call, x_shape, x_bits
        self.grad_input, self.differentiable, self.autocast = grad_input, differentiable, autocast
        self.y_shape: tuple[int, ...] | None = None
        self.y_bits, self.keeps_input, self.is_made = 32, False, False
        self.products: list[Product] = []
        self.gemms: list[Gemm] = []
        self.work: list[VectorWork] = []
        self.held: list[Held] = []

    @property
    def x_elements(self) -> int:
        """Elements of the input."""
        return math.prod(self.x_shape)

    def make(self, shape: tuple[int, ...], *, bits: int = 32) -> None:
        """Say what it makes."""
        if not all(isinstance(extent, int) and extent > 0 for extent in shape) or bits not in _BITS:
            raise UserError(
                f"layer {self.layer!r}: it makes a shape of whole numbers above zero, of {_BITS} bits an element, "
                f"got {list(shape)} of {bits}"
            )
        self.y_shape, self.y_bits, self.is_made = tuple(shape), bits, True

    def pass_on(self) -> None:
        """Say that it gives what it gets."""
        self.is_made = True

    def multiply(
        self,
        layer: Any,
        *,
        epilogue: Epilogue | None = None,
        bits: Mapping[str, tuple[int, int]] | None = None,
        out_bits: int = 32,
    ) -> tuple[int, ...]:
        """Say that the input meets the weight of a layer as of torch; return the product's shape, before `epilogue`.

        `bits`: role -> widths of its operands; the layer's own `operand_bits` unless given, 32 each without any.
        """
        y_shape = output_shape(layer, self.x_shape)
        widths = getattr(layer, "operand_bits", None) if bits is None else bits
        self.products.append(
            Product.of(
                layer,
                layer=self.call,
                x_shape=self.x_shape,
                y_shape=y_shape,
                grad_input=self.grad_input,
                bits=widths or {},
                out_elements=math.prod(leaving(y_shape, epilogue)),
                out_bits=out_bits,
                gradient_bits=out_bits,
            )
        )
        return y_shape

    def multiply_in_bf16(self, layer: Any, *, out_bits: int) -> tuple[int, ...]:
        """Say the same of a product in bf16, which keeps bf16 copies of its operands; what is bf16 is its own copy."""
        y_shape = self.multiply(layer, bits=dict.fromkeys(ROLES, (16, 16)), out_bits=out_bits)
        # torch's convolution saves both operands, whichever of the gradients it owes.
        both = is_convolution(layer) and self.differentiable
        x_is_bf16, w_is_bf16 = self.x_bits == 16, layer.weight.element_size() == 2
        if (both or layer.weight.requires_grad) and x_is_bf16:
            self.keep_input()
        elif both or layer.weight.requires_grad:
            self.keep("activation", 2 * self.x_elements)
        if (both or self.grad_input) and not w_is_bf16:
            self.keep("activation", 2 * layer.weight.numel())
        for elements, is_bf16 in ((self.x_elements, x_is_bf16), (layer.weight.numel(), w_is_bf16)):
            if not is_bf16:
                self.cast("output", elements)
        return y_shape

    def gemm(self, role: str, *, m: int, n: int, k: int, count: int = 1, bits: tuple[int, int] = (32, 32)) -> None:
        """Say a product [m, k] x [k, n] that is no layer's; see `Gemm`."""
        self.gemms.append(Gemm(layer=self.call, role=role, m=m, n=n, k=k, count=count, bits_a=bits[0], bits_b=bits[1]))

    def vector(self, role: str, kind: str, operations: int, read: int = 0, written: int = 0) -> None:
        """Say what is done element by element, and the bytes that it moves; see `VectorWork`."""
        if operations:
            self.work.append(
                VectorWork(
                    layer=self.layer,
                    role=role,
                    kind=kind,
                    operations=operations,
                    bytes_read=read,
                    bytes_written=written,
                )
            )

    def quantize(self, role: str, elements: int, *, each: int = QUANTIZE_OPS) -> None:
        """Say that a float tensor becomes codes, by `each` operations an element."""
        self.vector(role, "quantize", each * elements, FLOAT_BYTES * elements, elements)

    def cast(self, role: str, elements: int) -> None:
        """Say that a float tensor becomes bf16."""
        self.vector(role, "elementwise", elements, FLOAT_BYTES * elements, 2 * elements)

    def keep(self, kind: str, size: int) -> None:
        """Say that bytes are kept for the backward pass."""
        self._hold(Held(kind=kind, bytes=size, kept=True))

    def keep_input(self) -> None:
        """Say that the input itself is kept for the backward pass."""
        self.keeps_input = True

    def use(self, size: int, *, backward: bool = False) -> None:
        """Say that bytes are used on the way."""
        self._hold(Held(kind="workspace", bytes=size, backward=backward))

    def _hold(self, item: Held) -> None:
        if item.kind not in BUFFER_KINDS or not isinstance(item.bytes, int) or item.bytes < 0:
            raise UserError(
                f"layer {self.layer!r}: it holds a whole number of bytes of one of {', '.join(BUFFER_KINDS)}, "
                f"got {item.bytes!r} of {item.kind!r}"
            )
        if item.bytes:
            self.held.append(item)

    def epilogue(self, y_shape: tuple[int, ...], epilogue: Epilogue | None, *, coded: bool = False) -> None:
        """Say what ReLU and pooling of y keep and do; `coded`: its gradient is quantised before it is spread."""
        if epilogue is None:
            return
        elements, outputs = math.prod(y_shape), math.prod(leaving(y_shape, epilogue))
        pools = epilogue.pool > 1
        mask = epilogue.mask_bytes(y_shape) if self.differentiable else 0
        self.keep("mask", mask)
        if epilogue.relu:
            self.vector("output", "elementwise", elements, 0, 0 if pools else mask)
        if pools:
            self.vector("output", "pool", elements, 0, mask)
        if self.differentiable:
            # Codes are spread over their windows; ReLU's mask is a part of quantising.
            read, written = (outputs, elements) if pools else (0, 0)
            if not coded:
                read, written = FLOAT_BYTES * outputs, FLOAT_BYTES * elements
            self.vector("grad_input", "pool" if pools else "elementwise", elements, mask + read, written)


@runtime_checkable
class Accounts(Protocol):
    """A module that states its own account: it is asked, not run, with the shape of its one input."""

    def account(self, account: Account) -> None:
        """Say what a call multiplies, does, keeps, and what it makes."""
