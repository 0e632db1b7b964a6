"""A convolution or linear layer as its products, the GEMMs of each role, and the work that goes with them.

A convolution of B images [Ci, H, W] to [Co, OH, OW], kernel kh x kw, g groups, becomes g GEMMs [M, K] x [K, N]:

    role                   M              N              K
    output                 B*OH*OW        Co/g           Ci/g*kh*kw
    grad_input, col2im     B*OH*OW        Ci/g*kh*kw     Co/g
    grad_input, im2col     B*H*W          Ci/g           Co/g*kh*kw      (the implicit form)
    grad_weight            Ci/g*kh*kw     Co/g           B*OH*OW

A linear layer is a 1x1 convolution whose positions are all extents but the last.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.workload.values import FLOAT_BYTES, Gemm, VectorWork

_FLOAT_BITS = (32, 32)
_ONE = (1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One call of a convolution, x [B, Ci, H, W] -> y [B, Co, OH, OW], or of a linear layer, x [..., I] -> y [..., O].

    Attributes:
        layer: the layer's name, `name#2` where it is called again.
        channels: (Ci, Co).
        before: rows above and columns to the left that padding adds.
        grad_input, grad_weight: the gradients that it owes.
        bits: role -> widths of its operands; a role that is absent has float operands.
        out_elements: what leaves the layer: fewer than y has where pooling is a part of it.
        out_bits, gradient_bits: width of an element of y and of the input's gradient.
        bias, trains_bias: whether it has one, and owes its gradient.

    """

    layer: str
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    channels: tuple[int, int]
    groups: int = 1
    kernel: tuple[int, int] = _ONE
    stride: tuple[int, int] = _ONE
    dilation: tuple[int, int] = _ONE
    before: tuple[int, int] = (0, 0)
    grad_input: bool
    grad_weight: bool
    bits: Mapping[str, tuple[int, int]]
    out_elements: int
    out_bits: int = 32
    gradient_bits: int = 32
    bias: bool = False
    trains_bias: bool = False

    @classmethod
    def of(cls, module: Any, /, **facts: Any) -> "Product":
        """Return the product of a layer with the attributes of `nn.Conv2d` or `nn.Linear`."""
        if is_convolution(module):
            # torch keeps it, for all three ways of giving a padding, as (left, right, top, bottom).
            left, _, top, _ = module._reversed_padding_repeated_twice
            facts |= {"groups": module.groups, "kernel": tuple(module.kernel_size), "before": (top, left)}
            facts |= {"stride": tuple(module.stride), "dilation": tuple(module.dilation)}
        return cls(
            channels=_channels(module),
            grad_weight=module.weight.requires_grad,
            bias=module.bias is not None,
            trains_bias=module.bias is not None and module.bias.requires_grad,
            **facts,
        )

    @property
    def window(self) -> int:
        """Elements of a filter a channel."""
        return math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the output."""
        return math.prod(self.y_shape) * self.channels[0] // self.groups * self.window


def is_convolution(layer: Any) -> bool:
    """Whether it has the attributes of `nn.Conv2d`, not those of `nn.Linear`."""
    return hasattr(layer, "kernel_size")


def _channels(layer: Any) -> tuple[int, int]:
    if is_convolution(layer):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def output_shape(layer: Any, x_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what a layer as of torch makes of x; ValueError where x does not fit."""
    inputs, outputs = _channels(layer)
    place = -3 if is_convolution(layer) else -1
    if len(x_shape) < -place or x_shape[place] != inputs:
        raise ValueError(f"it takes {inputs} channels, or features, in dimension {place}")
    if not is_convolution(layer):
        return (*x_shape[:-1], outputs)
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    sizes = [
        (extent + border - d * (k - 1) - 1) // s + 1
        for extent, border, k, s, d in zip(
            x_shape[-2:], (top + bottom, left + right), layer.kernel_size, layer.stride, layer.dilation, strict=True
        )
    ]
    if min(sizes) < 1:
        raise ValueError(f"the image is smaller than the kernel {tuple(layer.kernel_size)}")
    return (*x_shape[:-3], outputs, *sizes)


def gemms_of(product: Product, grad_input_form: str, shares: Mapping[str, float]) -> list[Gemm]:
    """The GEMMs of the roles that a product owes; see the table above."""
    groups, window = product.groups, product.window
    channels_in, channels_out = product.channels
    positions = math.prod(product.y_shape) // channels_out
    n_in, n_out = channels_in // groups, channels_out // groups
    x, w, y = _touched(product) // groups, n_in * window * n_out, positions * n_out
    # role -> m, n, k, products, distinct elements of a, of b
    shapes = {"output": (positions, n_out, n_in * window, groups, x, w)}
    if product.grad_input and grad_input_form == "col2im":
        shapes["grad_input"] = (positions, n_in * window, n_out, groups, y, w)
    elif product.grad_input:
        inputs = math.prod(product.x_shape) // channels_in
        shapes["grad_input"] = (inputs, n_in, n_out * window, groups, y, w)
    trained, products = trained_channels(product, shares)
    if product.grad_weight and trained:
        shapes["grad_weight"] = (trained * window, n_out, positions, products, x * trained // n_in, y)
    return [_gemm(product, role, shape) for role, shape in shapes.items()]


def _gemm(product: Product, role: str, shape: tuple[int, int, int, int, int, int]) -> Gemm:
    m, n, k, count, elements_a, elements_b = shape
    bits_a, bits_b = product.bits.get(role, _FLOAT_BITS)
    return Gemm(
        layer=product.layer,
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
        bits_out={"output": product.out_bits, "grad_input": product.gradient_bits}.get(role, 32),
        elements_out=product.out_elements // product.groups if role == "output" else None,
    )


def trained_channels(product: Product, shares: Mapping[str, float]) -> tuple[int, int]:
    """(input channels a group, groups) whose weights are trained; (0, 0) where none is."""
    share = shares.get(product.layer.partition("#")[0], 1.0)
    if not 0 <= share <= 1:
        raise UserError(f"layer {product.layer!r}: the share of its channels to update must lie in 0..1, got {share}")
    groups = product.groups
    per_group = product.channels[0] // groups
    if per_group == 1 and groups > 1:
        kept = _share_of(groups, share)
        return (1, kept) if kept else (0, 0)
    kept = _share_of(per_group, share)
    return (kept, groups) if kept else (0, 0)


def _share_of(channels: int, share: float) -> int:
    # A share such as 0.29 lies a little below itself in floating point.
    return math.floor(channels * share + 1e-9)


def trained_weights(product: Product, shares: Mapping[str, float]) -> int:
    """Weights of the layer that its gradient covers."""
    channels, groups = trained_channels(product, shares)
    return channels * groups * product.window * (product.channels[1] // product.groups)


def work_of(product: Product, grad_input_form: str) -> Iterator[VectorWork]:
    """The bias, its gradient, and the scattered additions of col2im."""
    # What int8 products are rescaled with holds the bias.
    if product.bias and max(product.bits.get("output", _FLOAT_BITS)) > 8:
        yield _vector(product, "output", "elementwise", math.prod(product.y_shape))
    if product.trains_bias:
        elements = product.out_elements
        yield _vector(product, "grad_weight", "elementwise", elements, read=elements * product.out_bits // 8)
    is_unfolded = product.window > 1 or product.stride != _ONE
    if grad_input_form == "col2im" and product.grad_input and is_unfolded:
        (columns,) = (g.m * g.n * g.count for g in gemms_of(product, grad_input_form, {}) if g.role == "grad_input")
        moved = {"read": columns * FLOAT_BYTES, "written": math.prod(product.x_shape) * FLOAT_BYTES}
        yield _vector(product, "grad_input", "col2im", columns, **moved)


def _vector(product: Product, role: str, kind: str, operations: int, *, read: int = 0, written: int = 0) -> VectorWork:
    layer = product.layer
    return VectorWork(layer=layer, role=role, kind=kind, operations=operations, bytes_read=read, bytes_written=written)


def _touched(product: Product) -> int:
    """Distinct input elements that some window meets: padding is not read, a stride may pass over rows."""
    shape = product.x_shape
    if product.kernel == product.stride == _ONE and product.before == (0, 0):
        return math.prod(shape)
    touched = math.prod(shape[:-2])
    for axis in range(2):
        size, outputs, stride = shape[axis - 2], product.y_shape[axis - 2], product.stride[axis]
        places = {
            out * stride - product.before[axis] + tap * product.dilation[axis]
            for out in range(outputs)
            for tap in range(product.kernel[axis])
        }
        touched *= sum(0 <= place < size for place in places)
    # Windows that lie in the padding alone read a zero.
    return touched or math.prod(shape[:-2])
