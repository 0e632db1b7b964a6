"""An int8 graph as an ONNX model in QDQ form.

A convolution, a linear layer and an addition are float operators between DequantizeLinear and QuantizeLinear: a runtime
with integer kernels fuses each into one integer operation, any other computes the same to float's rounding. Pools read
and write codes.

A code and its zero point are stored as uint8, 128 above the graph's int8: the same steps, the same real values. As int8
onnxruntime on x86 leaves the convolutions beside a tensor that is read twice, as a shortcut is, in float.

Thin layers have as few as 9 weights a channel, so a file holds little beside them: the scale of biases is a product of
two constants that are there, zero points of 0 are left out, and constants have short names.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from octo_exp import __version__
from octo_exp.graph.operations import INPUT, Step, steps_of
from octo_exp.graph.spec import ConvSpec, Image, ModelSpec, PoolSpec

PRODUCER = "octo-exp"
OUTPUT = "logits"
# The oldest pair with all that is used here.
OPSET, IR_VERSION = 17, 8
# A stored code less the graph's.
SHIFT = 128


def build(spec: ModelSpec) -> onnx.ModelProto:
    """Return a graph as a model: `input` [N, C, S, S] float32, normalised -> `logits` [N, classes] float32.

    A step's node has its name, `layer1.body0`; what else the k-th step has, from 0, is called a letter and k: `q3` the
    codes that it makes, `w3` the weights' codes, `s3` their scales, `b3` the biases' codes.
    """
    emitter, steps = _Emitter(), steps_of(spec)
    tail = _tail(steps)
    emitter.quantize(emitter.start(spec), f"{INPUT}.codes", spec.image)
    codes = {INPUT: f"{INPUT}.codes"}
    for k, step in enumerate(steps):
        reads = [codes[name] for name in step.reads]
        if step.name == tail[0]:
            reads = [emitter.flatten(k, *reads)]
        codes[step.name] = emitter.step(k, step, reads, flat=step.name in tail)
    last = steps[-1]
    emitter.dequantize(codes[last.name], last.gives, OUTPUT)
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
    inputs = [(INPUT, image)]
    outputs: list[tuple[str, tuple[int, ...]]] = [(f"{INPUT}.out", (image.channels, image.size, image.size))]
    for k, step in enumerate(steps):
        starts = [(f"{step.name}.in{i}", image) for i, image in enumerate(step.takes)]
        reads = [emitter.quantize(name, f"{name}.codes", image) for name, image in starts]
        flat, gives = step.name in tail, step.gives
        codes = emitter.step(k, step, [emitter.flatten(k, *reads)] if flat else reads, flat=flat)
        emitter.dequantize(codes, gives, f"{step.name}.out")
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
    """Nodes and constants of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.scales: dict[float, str] = {}
        self.real: dict[str, str] = {}

    def node(self, kind: str, reads: Iterable[str], makes: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(reads), [makes], name=name, **attributes))
        return makes

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
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

    def _scale(self, image: Image) -> str:
        """The constant of a scale, one of each value."""
        scale = np.float32(image.scale)
        return self.constant(self.scales.setdefault(float(scale), f"a{len(self.scales)}"), scale)

    def _quantization(self, image: Image, whole: bool) -> list[str]:
        """A scale and a zero point. Codes are uint8 and it is 0 where the latter is left out, unless `whole`."""
        zero = image.zero + SHIFT
        return [self._scale(image), *([self.constant(f"z{zero}", np.uint8(zero))] if zero or whole else [])]

    def quantize(self, real: str, codes: str, image: Image, *, whole: bool = False) -> str:
        return self.node("QuantizeLinear", [real, *self._quantization(image, whole)], codes)

    def dequantize(self, codes: str, image: Image, real: str, *, whole: bool = False) -> str:
        return self.node("DequantizeLinear", [codes, *self._quantization(image, whole)], real)

    def start(self, spec: ModelSpec) -> str:
        """The graph's input in real values: where it is codes, it is rounded and scaled."""
        if not spec.input.is_codes:
            return INPUT
        rounded = self.node("Round", [INPUT], f"{INPUT}.rounded")
        return self.node("Mul", [rounded, self._scale(spec.image)], f"{INPUT}.real")

    def flatten(self, k: int, codes: str) -> str:
        """Codes [N, C, S, S] that the k-th step, a linear layer, reads -> [N, C * S * S]."""
        return self.node("Flatten", [codes], f"f{k}")

    def step(self, k: int, step: Step, codes: Sequence[str], *, flat: bool) -> str:
        """The codes that the k-th step makes of those that it reads."""
        # onnxruntime fuses a Gemm, which `flat` makes of a linear layer, only where all zero points are written.
        part, name = step.part, step.name
        if isinstance(part, PoolSpec):
            return self._pool(k, name, part, *codes)
        real = [self._real(k, *each, flat) for each in zip("xu", codes, step.takes, strict=False)]
        if isinstance(part, ConvSpec):
            kind, attributes = ("Gemm", {"transB": 1}) if flat else ("Conv", _geometry(part))
            real += self._weights(k, step, part, flat=flat)
        else:
            kind, attributes = "Add", {}
        return self.quantize(self.node(kind, real, f"y{k}", name, **attributes), f"q{k}", step.gives, whole=flat)

    def _real(self, k: int, letter: str, codes: str, image: Image, whole: bool) -> str:
        """Codes as real values, once for all that read them."""
        if codes not in self.real:
            self.real[codes] = self.dequantize(codes, image, f"{letter}{k}", whole=whole)
        return self.real[codes]

    def _weights(self, k: int, step: Step, part: ConvSpec, *, flat: bool) -> list[str]:
        """Real weights and biases: int8 with a scale an output channel, int32 with the scale of the sums."""
        weight = part.weight.reshape(part.out_channels, -1) if flat else part.weight
        scales = self.constant(f"s{k}", part.w_scales)
        codes = [self.constant(f"w{k}", weight), scales]
        if flat:
            codes.append(self.constant(f"o{k}", np.zeros(part.out_channels, np.int8)))
        sums = self.node("Mul", [self._scale(*step.takes), scales], f"t{k}")
        return [
            self.node("DequantizeLinear", codes, f"v{k}", axis=0),
            self.node("DequantizeLinear", [self.constant(f"b{k}", part.bias), sums], f"c{k}", axis=0),
        ]

    def _pool(self, k: int, name: str, part: PoolSpec, codes: str) -> str:
        """Of codes. A mean is rounded as such, halves to even: divided by a scale, a half would be one no more."""
        window = {"kernel_shape": (part.kernel,) * 2, "strides": (part.stride,) * 2}
        if part.kind == "max":
            return self.node("MaxPool", [codes], f"q{k}", name, pads=(part.padding,) * 4, **window)
        real = self.node("Cast", [codes], f"x{k}", to=TensorProto.FLOAT)
        mean = self.node("AveragePool", [real], f"m{k}", name, **window)
        rounded = self.node("Round", [mean], f"y{k}")
        return self.node("Cast", [rounded], f"q{k}", to=TensorProto.UINT8)


def _geometry(part: ConvSpec) -> dict[str, Any]:
    """A convolution's attributes, less those that are ONNX's defaults."""
    wanted = {"strides": (part.stride,) * 2, "pads": part.padding * 2, "group": part.groups}
    defaults = {"strides": (1, 1), "pads": (0,) * 4, "group": 1}
    return {key: value for key, value in wanted.items() if value != defaults[key]}


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
