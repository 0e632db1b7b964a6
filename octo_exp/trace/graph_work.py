"""What one step of a microcontroller graph does beside its GEMM, keeps, and uses on the way.

Operations on single elements, this project's own count as in `vector`:

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

from octo_exp.graph.train.pool import Pool
from octo_exp.trace.recorded import Kept, Record
from octo_exp.trace.vector import FLOAT_BYTES, QUANTIZE_OPS
from octo_exp.workload import VectorWork

WEIGHT_OPS = 2
OUTPUT_OPS = 5
ADD_OPS = 9


class Note:
    """One event of a layer, and what is said of it."""

    def __init__(self, record: Record, layer: str, event: int) -> None:
        self.record, self.layer, self.event = record, layer, event

    def keep(self, kind: str, size: int) -> None:
        """Say that bytes are kept for the backward pass."""
        if size:
            self.record.kept.append(Kept(layer=self.layer, kind=kind, bytes=size, event=self.event, kept=True))

    def use(self, size: int, *, backward: bool = False) -> None:
        """Say that bytes are used on the way."""
        if size:
            self.record.kept.append(
                Kept(layer=self.layer, kind="workspace", bytes=size, event=self.event, backward=backward)
            )

    def work(self, role: str, kind: str, operations: int, *, read: int = 0, written: int = 0) -> None:
        """Say what is done element by element, and the bytes that it moves."""
        if operations:
            self.record.work.append(
                VectorWork(
                    layer=self.layer,
                    role=role,
                    kind=kind,
                    operations=operations,
                    bytes_read=read,
                    bytes_written=written,
                )
            )


def bits_of(shape: tuple[int, ...]) -> int:
    """Bytes of a bit for each element, every image rounded up to bytes."""
    return shape[0] * -(-math.prod(shape[1:]) // 8)


def enter(note: Note, elements: int, width: int) -> None:
    """The batch, float, becomes codes."""
    note.work("output", "quantize", QUANTIZE_OPS * elements, read=FLOAT_BYTES * elements, written=width * elements)


def conv_forward(note: Note, weights: int, y: tuple[int, ...], *, width: int, wanted: bool) -> None:
    """Masters become codes of `width` bytes, sums become codes; `wanted`: a gradient passes."""
    note.work("output", "quantize", WEIGHT_OPS * weights, read=FLOAT_BYTES * weights, written=width * weights)
    note.use(width * weights)
    note.work("output", "rescale", OUTPUT_OPS * math.prod(y), written=bits_of(y) if wanted else 0)
    note.keep("mask", bits_of(y) if wanted else 0)


def conv_backward(note: Note, weights: int, y: tuple[int, ...], *, images: int, passes: bool, bias: bool) -> None:
    """The gradient's mask and scale, the bias's gradient; for grad_input the weights. `images` exist at a time."""
    elements = math.prod(y)
    size = FLOAT_BYTES * elements
    role = "grad_input" if passes else "grad_weight"
    note.work(role, "elementwise", 2 * elements, read=bits_of(y) + size, written=size)
    note.use(size // y[0] * images, backward=True)
    if bias:
        note.work("grad_weight", "elementwise", elements)
    if passes:
        note.work("grad_input", "quantize", weights, read=FLOAT_BYTES * weights, written=FLOAT_BYTES * weights)
        note.use(FLOAT_BYTES * weights, backward=True)


def kept_codes(note: Note, elements: int, *, batch: int, images: int) -> None:
    """Codes of a trained weight's input become float in the backward pass, `images` at a time."""
    note.work("grad_weight", "elementwise", elements, read=elements, written=FLOAT_BYTES * elements)
    note.use(FLOAT_BYTES * (elements // batch) * images, backward=True)


def select(note: Note, elements: int, width: int) -> None:
    """Codes are copied to be kept: some channels of them, or narrower ones."""
    note.work("output", "elementwise", elements, read=width * elements, written=elements)
    note.keep("activation", elements)


def fake_quantize(note: Note, role: str, elements: int) -> None:
    """A gradient is rounded to int8 and back."""
    size = FLOAT_BYTES * elements
    note.work(role, "quantize", (QUANTIZE_OPS + 1) * elements, read=size, written=size)


def addition(note: Note, y: tuple[int, ...], *, width: int, branches: int) -> None:
    """Two tensors of codes are added; the gradient goes into `branches` of them."""
    elements, mask = math.prod(y), bits_of(y) if branches else 0
    note.work("output", "elementwise", ADD_OPS * elements, read=2 * width * elements, written=width * elements + mask)
    note.keep("mask", mask)
    if branches:
        size = FLOAT_BYTES * elements
        operations = (1 + branches) * elements
        note.work("grad_input", "elementwise", operations, read=size + mask, written=branches * size)


def gradient_sum(note: Note, elements: int) -> None:
    """What both branches of a block read gets the sum of their gradients."""
    size = FLOAT_BYTES * elements
    note.work("grad_input", "elementwise", elements, read=2 * size, written=size)


def pooling(note: Note, pool: Pool, x: tuple[int, ...], y: tuple[int, ...], *, width: int, passes: bool) -> None:
    """Windows become their maximum or mean; of a maximum its place is kept where a gradient passes."""
    inputs, outputs = math.prod(x), math.prod(y)
    # A place in a window is a byte, but for windows of more places than a byte has numbers.
    each = 1 if pool.kernel**2 <= 256 else 4
    places = outputs * each if passes and pool.kind == "max" else 0
    note.work("output", "pool", inputs, read=width * inputs, written=width * outputs + places)
    note.keep("mask", places)
    if passes:
        note.work("grad_input", "pool", inputs, read=FLOAT_BYTES * outputs + places, written=FLOAT_BYTES * inputs)


def dequantize(note: Note, elements: int, *, width: int, passes: bool) -> None:
    """Codes become the numbers that they stand for."""
    size = FLOAT_BYTES * elements
    note.work("output", "elementwise", 2 * elements, read=width * elements, written=size)
    if passes:
        note.work("grad_input", "elementwise", elements, read=size, written=size)
