"""What one step of the graph does beside its GEMM, keeps, and uses on the way.

Operations on single elements, counted as in `octo_exp.workload.account`:

    input     QUANTIZE_OPS: scale, offset, round, clamp
    weights   2 in the forward pass: the float masters become codes, which are summed for the input's zero point; 1 in
              the backward pass: the masters become whole numbers again
    output    5: bias, scale, round, offset, clamp; where a gradient passes, a bit of each is written: not clamped
    addition  9: two offsets, two scales, the sum, scale, round, offset, clamp
    backward  2 a gradient: its bit, the scale (of an addition: 1, and 1 for each branch); 1 for the bias's sum; 1 for
              each kept code, which becomes float; 1 for each sum of two branches' gradients

Gradients are float32. With `quantize_gradient` they are rounded to int8 and back after the product: QUANTIZE_OPS + 1.
"""

import math

from octo_exp.graph.train.modules import McuConv2d
from octo_exp.graph.train.pool import Pool
from octo_exp.workload import FLOAT_BYTES, QUANTIZE_OPS, Account, Product

WEIGHT_OPS = 2
OUTPUT_OPS = 5
ADD_OPS = 9


def bits_of(shape: tuple[int, ...]) -> int:
    """Bytes of a bit for each element, every image rounded up to bytes."""
    return shape[0] * -(-math.prod(shape[1:]) // 8)


def product_of(account: Account, conv: McuConv2d, y: tuple[int, ...], *, trains: bool) -> Product:
    """The convolution's product: codes in the forward pass, float32 gradients, whatever is rounded afterwards."""
    bits, g = account.x_bits, conv.geometry
    return Product(
        layer=account.call,
        x_shape=account.x_shape,
        y_shape=y,
        channels=(conv.in_channels, conv.out_channels),
        groups=g.groups,
        kernel=conv.kernel_size,
        stride=g.stride,
        dilation=g.dilation,
        before=g.padding,
        grad_input=account.grad_input,
        grad_weight=trains,
        bits={"output": (bits, bits), "grad_input": (32, bits), "grad_weight": (bits, 32)},
        out_elements=math.prod(y),
        out_bits=bits,
    )


def enter(account: Account, width: int) -> None:
    """The batch, float, becomes codes."""
    elements = account.x_elements
    account.vector("output", "quantize", QUANTIZE_OPS * elements, FLOAT_BYTES * elements, width * elements)


def conv_forward(account: Account, weights: int, y: tuple[int, ...], *, width: int) -> None:
    """Masters become codes of `width` bytes, sums become codes."""
    mask = bits_of(y) if account.differentiable else 0
    account.vector("output", "quantize", WEIGHT_OPS * weights, FLOAT_BYTES * weights, width * weights)
    account.use(width * weights)
    account.vector("output", "rescale", OUTPUT_OPS * math.prod(y), 0, mask)
    account.keep("mask", mask)


def conv_backward(account: Account, weights: int, y: tuple[int, ...], *, images: int, bias: bool) -> None:
    """The gradient's mask and scale, the bias's gradient; for grad_input the weights. `images` exist at a time."""
    elements, passes = math.prod(y), account.grad_input
    size = FLOAT_BYTES * elements
    account.vector("grad_input" if passes else "grad_weight", "elementwise", 2 * elements, bits_of(y) + size, size)
    account.use(size // y[0] * images, backward=True)
    if bias:
        account.vector("grad_weight", "elementwise", elements)
    if passes:
        account.vector("grad_input", "quantize", weights, FLOAT_BYTES * weights, FLOAT_BYTES * weights)
        account.use(FLOAT_BYTES * weights, backward=True)


def kept_codes(account: Account, elements: int, *, images: int) -> None:
    """Codes of a trained weight's input become float in the backward pass, `images` at a time."""
    account.vector("grad_weight", "elementwise", elements, elements, FLOAT_BYTES * elements)
    account.use(FLOAT_BYTES * (elements // account.x_shape[0]) * images, backward=True)


def select(account: Account, elements: int, width: int) -> None:
    """Codes are copied to be kept: some channels of them, or narrower ones."""
    account.vector("output", "elementwise", elements, width * elements, elements)
    account.keep("activation", elements)


def fake_quantize(account: Account, role: str, elements: int) -> None:
    """A gradient is rounded to int8 and back."""
    size = FLOAT_BYTES * elements
    account.vector(role, "quantize", (QUANTIZE_OPS + 1) * elements, size, size)


def addition(account: Account, y: tuple[int, ...], *, width: int, branches: int) -> None:
    """Two tensors of codes are added; the gradient goes into `branches` of them."""
    elements, mask = math.prod(y), bits_of(y) if branches else 0
    account.vector("output", "elementwise", ADD_OPS * elements, 2 * width * elements, width * elements + mask)
    account.keep("mask", mask)
    if branches:
        size = FLOAT_BYTES * elements
        account.vector("grad_input", "elementwise", (1 + branches) * elements, size + mask, branches * size)


def gradient_sum(account: Account) -> None:
    """What both branches of a block read gets the sum of their gradients."""
    size = FLOAT_BYTES * account.x_elements
    account.vector("grad_input", "elementwise", account.x_elements, 2 * size, size)


def pooling(account: Account, pool: Pool, y: tuple[int, ...], *, width: int) -> None:
    """Windows become their maximum or mean; of a maximum its place is kept where a gradient passes."""
    inputs, outputs, passes = account.x_elements, math.prod(y), account.grad_input
    # A place in a window is a byte, but for windows of more places than a byte has numbers.
    each = 1 if pool.kernel**2 <= 256 else 4
    places = outputs * each if passes and pool.kind == "max" else 0
    account.vector("output", "pool", inputs, width * inputs, width * outputs + places)
    account.keep("mask", places)
    if passes:
        account.vector("grad_input", "pool", inputs, FLOAT_BYTES * outputs + places, FLOAT_BYTES * inputs)


def dequantize(account: Account, *, width: int) -> None:
    """Codes become the numbers that they stand for."""
    elements, size = account.x_elements, FLOAT_BYTES * account.x_elements
    account.vector("output", "elementwise", 2 * elements, width * elements, size)
    if account.grad_input:
        account.vector("grad_input", "elementwise", elements, size, size)
