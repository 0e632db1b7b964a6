"""The workload of inference with an int8 graph, one image, and of the float network that it stands for.

A step is a GEMM as in the package's table (role output), with what is done element by element beside it:

    input      of integers: QUANTIZE_OPS: scale, round, offset, clamp
    conv       of integers REQUANTIZE_OPS: offset, multiply, round twice, shift, zero point, clamp (in one pass with the
               sums, which never leave); of floats FLOAT_OPS: bias, activation
    pool       an operation for every element of every window
    addition   of integers ADD_OPS: two zero points, two multiplications, a sum, round, shift, zero point, clamp; of
               floats FLOAT_OPS: the sum, activation

Memory: tensors between steps, each from the step that makes it to the last one that reads it; weights lie elsewhere.
The float network has its norms folded, as the graph has.
"""

import math

from octo_exp.graph.operations import INPUT, Step, last_reads, steps_of
from octo_exp.graph.parts import ConvSpec, Image, PoolSpec
from octo_exp.graph.spec import ModelSpec
from octo_exp.workload import QUANTIZE_OPS, Buffer, Gemm, VectorWork, Workload

REQUANTIZE_OPS = 7
ADD_OPS = 9
FLOAT_OPS = 2


def inference_workload(spec: ModelSpec, *, integers: bool) -> Workload:
    """Return what one image costs: as int8 codes, or in float32."""
    steps = steps_of(spec)
    width = 1 if integers else 4
    work = [_work(step, width) for step in steps]
    if integers:
        first, size = steps[0].name, _elements(spec.image)
        work.insert(0, _vector(first, "quantize", QUANTIZE_OPS * size, read=4 * size, written=size))
    return Workload(
        gemms=tuple(_gemm(step.name, step.part, width) for step in steps if isinstance(step.part, ConvSpec)),
        vector=tuple(work),
        buffers=tuple(_buffers(spec, steps, width)),
        batch_size=1,
        grad_input_form="col2im",
    )


def _elements(image: Image) -> int:
    return image.channels * image.size**2


def _gemm(name: str, conv: ConvSpec, width: int) -> Gemm:
    outputs, k = conv.out_channels // conv.groups, math.prod(conv.weight.shape[1:])
    m, inputs = conv.out_size**2, _elements(conv.takes) // conv.groups
    return Gemm(
        layer=name,
        role="output",
        m=m,
        n=outputs,
        k=k,
        count=conv.groups,
        bits_a=8 * width,
        bits_b=8 * width,
        bits_out=8 * width,
        elements_a=min(inputs, m * k),
    )


def _work(step: Step, width: int) -> VectorWork:
    made, integers = _elements(step.gives), width == 1
    if isinstance(step.part, ConvSpec):
        # On the sums as they leave the array: no bytes of its own.
        return _vector(step.name, "rescale", (REQUANTIZE_OPS if integers else FLOAT_OPS) * made)
    read = sum(_elements(image) for image in step.takes)
    moved = {"read": width * read, "written": width * made}
    if isinstance(step.part, PoolSpec):
        return _vector(step.name, "pool", step.part.kernel**2 * made, **moved)
    return _vector(step.name, "elementwise", (ADD_OPS if integers else FLOAT_OPS) * made, **moved)


def _vector(layer: str, kind: str, operations: int, *, read: int = 0, written: int = 0) -> VectorWork:
    return VectorWork(
        layer=layer, role="output", kind=kind, operations=operations, bytes_read=read, bytes_written=written
    )


def _buffers(spec: ModelSpec, steps: list[Step], width: int) -> list[Buffer]:
    """A buffer for every tensor; events are steps."""
    last = last_reads(steps)
    made = [(INPUT, spec.image, 0), *((step.name, step.gives, k) for k, step in enumerate(steps))]
    return [
        Buffer(layer=name, kind="activation", bytes=width * _elements(image), first=first, last=last.get(name, first))
        for name, image, first in made
    ]
