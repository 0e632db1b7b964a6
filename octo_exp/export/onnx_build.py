"""An int8 graph as an ONNX model in QDQ form.

A convolution, a linear layer and an addition are float operators between DequantizeLinear and QuantizeLinear: a runtime
with integer kernels fuses each into one integer operation, any other computes the same to float's rounding. Pools read
and write codes.

A code and its zero point are stored as uint8, 128 above the graph's int8: the same steps, the same real values. As int8
onnxruntime on x86 leaves the convolutions beside a tensor that is read twice, as a shortcut is, in float.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from octo_exp import __version__
from octo_exp.mcu.spec import ConvSpec, Image, ModelSpec, PoolSpec
from octo_exp.mcu.steps import INPUT, Step, steps_of

PRODUCER = "octo-exp"
OUTPUT = "logits"
# The oldest pair with all that is used here.
OPSET, IR_VERSION = 17, 8
# A stored code less the graph's.
SHIFT = 128


def build(spec: ModelSpec) -> onnx.ModelProto:
    """Return a graph as a model: `input` [N, C, S, S] float32, normalised -> `logits` [N, classes] float32.

    Names are those of the steps: `layer1.body0` is a node and the codes that it makes.
    """
    emitter, steps = _Emitter(), steps_of(spec)
    tail = _tail(steps)
    emitter.quantize(emitter.start(spec), f"{INPUT}.codes", spec.image)
    codes = {INPUT: f"{INPUT}.codes"} | {step.name: step.name for step in steps}
    for step in steps:
        reads = [codes[name] for name in step.reads]
        if step.name == tail[0]:
            reads = [emitter.flatten(step.name, *reads)]
        emitter.step(step, reads, flat=step.name in tail)
    last = steps[-1]
    emitter.dequantize(last.name, last.gives, OUTPUT)
    return emitter.model([(INPUT, spec.image)], [(OUTPUT, (last.gives.channels,))])


def build_alone(spec: ModelSpec) -> onnx.ModelProto:
    """Return all steps side by side, each with inputs of its own: `<step>.in0`, ... -> `<step>.out`, `input` too.

    Inputs and outputs are real values, so a step has the operators and the neighbours that `build` gives it, and with
    them a runtime's same kernels. A linear layer of the graph's end gives [N, features].
    """
    emitter, steps = _Emitter(), steps_of(spec)
    tail = _tail(steps)
    image = spec.image
    emitter.quantize(emitter.start(spec), f"{INPUT}.codes", image)
    emitter.dequantize(f"{INPUT}.codes", image, f"{INPUT}.out")
    inputs, outputs = [(INPUT, image)], [(f"{INPUT}.out", (image.channels, image.size, image.size))]
    for step in steps:
        starts = [(f"{step.name}.in{i}", image) for i, image in enumerate(step.takes)]
        reads = [emitter.quantize(name, f"{name}.codes", image) for name, image in starts]
        flat, gives = step.name in tail, step.gives
        emitter.step(step, [emitter.flatten(step.name, *reads)] if flat else reads, flat=flat)
        emitter.dequantize(step.name, gives, f"{step.name}.out")
        inputs += starts
        outputs.append((f"{step.name}.out", (gives.channels,) if flat else (gives.channels, gives.size, gives.size)))
    return emitter.model(inputs, outputs)


def _tail(steps: Sequence[Step]) -> list[str]:
    """Names of the linear layers at the end, which read and write [N, features]."""
    return [step.name for step in takewhile(_is_linear, reversed(steps))][::-1]


def _is_linear(step: Step) -> bool:
    part = step.part
    if not isinstance(part, ConvSpec) or part.groups > 1:
        return False
    return part.kernel_size == (part.in_size, part.in_size) and part.padding == (0, 0)


class _Emitter:
    """Nodes and constants of a graph. Helpers of a step are called `<step>.<what>`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, kind: str, reads: Iterable[str], makes: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(reads), [makes], name=name, **attributes))
        return makes

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def model(
        self, inputs: Iterable[tuple[str, Image]], outputs: Iterable[tuple[str, tuple[int, ...]]]
    ) -> onnx.ModelProto:
        starts = [_value(name, (image.channels, image.size, image.size)) for name, image in inputs]
        ends = [_value(name, shape) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, PRODUCER, starts, ends, list(self.constants.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        made = {"producer_name": PRODUCER, "producer_version": __version__, "ir_version": IR_VERSION}
        return helper.make_model(graph, opset_imports=opsets, **made)

    def _quantization(self, image: Image) -> list[str]:
        """The constants of a scale and a zero point, one of each value."""
        scale, zero = np.float32(image.scale), image.zero + SHIFT
        return [self.constant(f"scale{scale:.9g}", scale), self.constant(f"zero{zero}", np.uint8(zero))]

    def quantize(self, real: str, codes: str, image: Image) -> str:
        return self.node("QuantizeLinear", [real, *self._quantization(image)], codes)

    def dequantize(self, codes: str, image: Image, real: str) -> str:
        return self.node("DequantizeLinear", [codes, *self._quantization(image)], real)

    def start(self, spec: ModelSpec) -> str:
        """The graph's input in real values: where it is codes, it is rounded and scaled."""
        if not spec.input.is_codes:
            return INPUT
        rounded = self.node("Round", [INPUT], f"{INPUT}.rounded")
        return self.node("Mul", [rounded, self._quantization(spec.image)[0]], f"{INPUT}.real")

    def flatten(self, name: str, codes: str) -> str:
        """Codes [N, C, S, S] that a linear layer reads -> [N, C * S * S]."""
        return self.node("Flatten", [codes], f"{name}.flat")

    def step(self, step: Step, codes: Sequence[str], *, flat: bool) -> None:
        """The codes that a step makes, called by its name, of those that it reads."""
        part, name = step.part, step.name
        if isinstance(part, PoolSpec):
            return self._pool(name, part, *codes)
        # A DequantizeLinear of its own for each reader: runtimes fuse it with the one operator behind.
        pairs = enumerate(zip(codes, step.takes, strict=True))
        real = [self.dequantize(x, image, f"{name}.x{i}") for i, (x, image) in pairs]
        if isinstance(part, ConvSpec):
            kind, attributes = ("Gemm", {"transB": 1}) if flat else ("Conv", _geometry(part))
            real += self._weights(name, part, flat=flat)
        else:
            kind, attributes = "Add", {}
        self.quantize(self.node(kind, real, f"{name}.y", name, **attributes), name, step.gives)

    def _weights(self, name: str, part: ConvSpec, *, flat: bool) -> list[str]:
        """Real weights and biases: int8 with a scale an output channel, int32 with the scale of the sums; zero is 0."""
        weight = part.weight.reshape(part.out_channels, -1) if flat else part.weight
        sums = np.float32(part.x_scale) * part.w_scales
        return [
            # With exact sums on old CPUs, onnxruntime makes weights of uint8 and changes their zero points in place.
            self._constant_codes(f"{name}.w", weight, part.w_scales, f"{name}.w.zeros"),
            self._constant_codes(f"{name}.b", part.bias, sums, f"zeros{part.out_channels}"),
        ]

    def _constant_codes(self, name: str, codes: np.ndarray, scales: np.ndarray, zeros: str) -> str:
        self.constant(zeros, np.zeros(scales.shape, codes.dtype))
        reads = [self.constant(f"{name}.codes", codes), self.constant(f"{name}.scales", scales), zeros]
        return self.node("DequantizeLinear", reads, name, axis=0)

    def _pool(self, name: str, part: PoolSpec, codes: str) -> None:
        """Of codes. A mean is rounded as such, halves to even: divided by a scale, a half would be one no more."""
        window = {"kernel_shape": (part.kernel,) * 2, "strides": (part.stride,) * 2}
        if part.kind == "max":
            self.node("MaxPool", [codes], name, name, pads=(part.padding,) * 4, **window)
            return
        real = self.node("Cast", [codes], f"{name}.x0", to=TensorProto.FLOAT)
        mean = self.node("AveragePool", [real], f"{name}.mean", name, **window)
        rounded = self.node("Round", [mean], f"{name}.y")
        self.node("Cast", [rounded], name, to=TensorProto.UINT8)


def _geometry(part: ConvSpec) -> dict[str, Any]:
    """A convolution's attributes, less those that are ONNX's defaults."""
    wanted = {"strides": (part.stride,) * 2, "pads": part.padding * 2, "group": part.groups}
    defaults = {"strides": (1, 1), "pads": (0,) * 4, "group": 1}
    return {key: value for key, value in wanted.items() if value != defaults[key]}


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
