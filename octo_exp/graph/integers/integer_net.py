"""An int8 graph as a device without floats runs it: int8 codes in, int8 codes of the logits out."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.graph.input import McuInput
from octo_exp.graph.integers import cpu_layers, fixed
from octo_exp.graph.integers.bounds import within_int32
from octo_exp.graph.integers.fixed import AddFactors
from octo_exp.graph.integers.program import Program, most_images
from octo_exp.graph.module_list import ModuleList
from octo_exp.graph.operations import Step, steps_of
from octo_exp.graph.parts import Q_MIN
from octo_exp.graph.spec import BlockSpec, ConvSpec, Layer, ModelSpec, PoolSpec, ResidualSpec
from octo_exp.kernels import ops
from octo_exp.kernels.cpu import fixed_loops
from octo_exp.kernels.cpu.loops import array, use_torch_threads


class IntegerLayer(nn.Module):
    """int8 codes [N, C, H, W], of an addition two -> int8 codes [N, O, OH, OW].

    plain: in torch, on any device. on_cpu: the same codes by compiled loops, [N, H, W, C] -> [N, OH, OW, O].
    """

    plain: Callable[..., Tensor]
    on_cpu: Callable[..., np.ndarray]

    def forward(self, *codes: Tensor) -> Tensor:
        """Return the codes that the layer makes."""
        if not _has_loops(codes[0]):
            return self.plain(*codes)
        use_torch_threads()
        return cpu_layers.codes_of(self.on_cpu(*map(cpu_layers.images_of, codes)))


class IntegerConv(IntegerLayer):
    """y = requantise(sum of code * w + offset); see `fixed`.

    Buffers, all integer: weight int8 [O, C/G, KH, KW]; offset [O] = bias - x_zero * sum of w; value, shift [O] int32.
    """

    weight: Tensor
    offset: Tensor
    value: Tensor
    shift: Tensor

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.spec, self.geometry, self.x_zero, self.y_zero = spec, spec.geometry, spec.x_zero, spec.y_zero
        weight = spec.weight.astype(np.int64).reshape(spec.out_channels, -1)
        factors = fixed.conv_factors(spec.x_scale, spec.w_scales, spec.y_scale)
        offset = spec.bias - spec.x_zero * weight.sum(1)
        # Channels-last, so that the rows of a GEMM are a view.
        weights = torch.tensor(spec.weight).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weights)
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.int32))
        self.register_buffer("value", torch.tensor(factors.value))
        self.register_buffer("shift", torch.tensor(factors.shift))
        self._ready: tuple[Tensor, int, cpu_layers.Conv] | None = None

    @property
    def ready(self) -> cpu_layers.Conv:
        """Return this convolution as a CPU runs it; it shares the buffers."""
        weight = self.weight
        # After a move it is another tensor, after a load another version of it.
        if self._ready is None or self._ready[0] is not weight or self._ready[1] != weight._version:
            made = cpu_layers.Conv(self.spec, weight, self.offset, self.value, self.shift)
            self._ready = (weight, weight._version, made)
        return self._ready[2]

    def plain(self, codes: Tensor) -> Tensor:
        """See `IntegerLayer`."""
        backend = ops.backend(ops.resolve_impl("auto", codes.device.type), codes.device.type)
        acc = backend.int8_conv2d(codes, self.weight, self.geometry, pad_value=self.x_zero)
        return fixed.requantize(acc + self.offset.reshape(-1, 1, 1), self.value, self.shift, self.y_zero)

    def on_cpu(self, x: np.ndarray) -> np.ndarray:
        """See `IntegerLayer`."""
        return self.ready(x)


class IntegerPool(IntegerLayer):
    """The pool of codes; scale and zero point pass unchanged."""

    def __init__(self, spec: PoolSpec) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride, self.padding = spec.kind, spec.kernel, spec.stride, spec.padding

    def plain(self, codes: Tensor) -> Tensor:
        """See `IntegerLayer`."""
        k, s = self.kernel, self.stride
        windows = F.pad(codes, (self.padding,) * 4, value=Q_MIN).unfold(2, k, s).unfold(3, k, s).flatten(4)
        return windows.amax(4) if self.kind == "max" else fixed.average(windows.sum(4, dtype=torch.int32), k * k)

    def on_cpu(self, x: np.ndarray) -> np.ndarray:
        """See `IntegerLayer`."""
        return cpu_layers.pooled(x, self.kind, self.kernel, self.stride, self.padding)


class IntegerAdd(IntegerLayer):
    """What the shortcut gives, and what the body gives (scale s2, zero point z2) -> their sum."""

    factors: AddFactors

    def __init__(self, spec: ResidualSpec, *, s2: float, z2: int) -> None:
        super().__init__()
        self.factors = fixed.add_factors(spec.x_scale, s2, spec.y_scale)
        self.zeros = (spec.x_zero, z2, spec.y_zero)

    def plain(self, shortcut: Tensor, body: Tensor) -> Tensor:
        """See `IntegerLayer`."""
        return fixed.add(shortcut, body, self.factors, self.zeros)

    def on_cpu(self, shortcut: np.ndarray, body: np.ndarray) -> np.ndarray:
        """See `IntegerLayer`."""
        return cpu_layers.added(shortcut, body, self.factors, self.zeros)


# The module of a step.
IntegerPart = IntegerConv | IntegerPool | IntegerAdd


class IntegerBlock(IntegerLayer):
    """Body and shortcut of one input, and their addition, or the body alone."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.body = ModuleList(IntegerConv(conv) for conv in spec.body)
        self.shortcut = ModuleList(IntegerConv(conv) for conv in spec.shortcut)
        last, add = spec.body[-1], spec.residual
        self.add = None if add is None else IntegerAdd(add, s2=last.y_scale, z2=last.y_zero)

    def plain(self, codes: Tensor) -> Tensor:
        """See `IntegerLayer`."""
        body, shortcut = codes, codes
        for conv in self.body:
            body = conv.plain(body)
        for conv in self.shortcut:
            shortcut = conv.plain(shortcut)
        return body if self.add is None else self.add.plain(shortcut, body)

    def on_cpu(self, x: np.ndarray) -> np.ndarray:
        """See `IntegerLayer`."""
        body, shortcut = x, x
        for conv in self.body:
            body = conv.on_cpu(body)
        for conv in self.shortcut:
            shortcut = conv.on_cpu(shortcut)
        return body if self.add is None else self.add.on_cpu(shortcut, body)


class IntegerNet(nn.Module):
    """x [N, C, H, W] float32, normalised as the spec's input says -> logits [N, classes] float32.

    `classify` is what lies between: codes in, codes out, and no float. A logit is (code - logit_zero) * logit_scale.
    `spec` is the graph as it runs: biases that would let sums leave int32 are pulled in (`within_int32`). UserError
    where that would move an output, or a factor between scales is out of range.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec = within_int32(spec)
        self.input = McuInput(spec.input)
        self.layers = ModuleList(_layer(layer) for layer in spec.layers)
        self.classifier = IntegerConv(spec.classifier)
        self.logit_scale, self.logit_zero = spec.classifier.y_scale, spec.classifier.y_zero
        # A tuple: torch looks a module's children up at every access.
        self._sequence = (*self.layers, self.classifier)
        self._program: Program | None = None
        self._most = most_images(steps_of(spec))
        # As `McuInput` has it: scale, zero point, and the numbers that it allows.
        scale, zero = np.float32(spec.input.scale), np.float32(spec.input.zero)
        low, high = (-128.5, np.nextafter(np.float32(127.5), 0)) if spec.input.is_codes else (-np.inf, np.inf)
        self.image_constants = (scale, zero, np.float32(low), np.float32(high))

    def steps(self) -> list[tuple[Step, IntegerPart]]:
        """Return the graph's steps in order of execution, each with the module that computes it."""
        # Modules are registered in order of execution.
        modules = (module for module in self.modules() if isinstance(module, IntegerPart))
        return list(zip(steps_of(self.spec), modules, strict=True))

    def codes_of(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] of any real type, computed in float32 -> its codes, int8."""
        codes: Tensor = self.input(x.float())
        return codes.to(torch.int8)

    def outputs(self, codes: Tensor) -> Iterator[Tensor]:
        """codes [N, C, H, W] int8 -> what each layer makes, in order; the classifier's [N, classes, 1, 1] last."""
        self._check(codes)
        for layer in (*self.layers, self.classifier):
            codes = layer(codes)
            yield codes

    def _check(self, x: Tensor, dtype: torch.dtype = torch.int8) -> None:
        image = self.spec.image
        if x.dtype != dtype or x.shape[1:] != (image.channels, image.size, image.size) or not len(x):
            what = "int8 codes" if dtype == torch.int8 else "images"
            wanted = f"{what} [N >= 1, {image.channels}, {image.size}, {image.size}]"
            raise UserError(f"input must be {wanted}, got {x.dtype} {list(x.shape)}")

    @torch.no_grad()
    def classify(self, codes: Tensor) -> Tensor:
        """codes [N, C, H, W] int8 -> codes of the logits [N, classes] int8."""
        self._check(codes)
        if _has_loops(codes):
            use_torch_threads()
            return torch.from_numpy(self._on_cpu(cpu_layers.images_of(codes)))
        for made in self.outputs(codes):
            codes = made
        return codes.flatten(1)

    def _on_cpu(self, x: np.ndarray) -> np.ndarray:
        """Codes [N, H, W, C] -> codes of the logits [N, classes]."""
        for layer in self._sequence:
            x = layer.on_cpu(x)
        return x.reshape(len(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] of any real type -> logits [N, classes] float32."""
        x = x.float()
        self._check(x, torch.float32)
        if not _has_loops(x):
            return (self.classify(self.codes_of(x)) - float(self.logit_zero)) * self.logit_scale
        # The same in compiled pieces: for a few images torch's small operations cost more than a layer.
        use_torch_threads()
        logits = self._logits(array(x), self._program_of(len(x)))
        if logits is None:
            # It says which number.
            self.input(x)
        return torch.from_numpy(logits)

    def _logits(self, x: np.ndarray, program: Program | None) -> np.ndarray | None:
        """Images [N, C, H, W] -> logits [N, classes]; None where a number is none that the input allows."""
        if program is not None:
            return program(x)
        codes = np.empty((x.shape[0], *x.shape[2:], x.shape[1]), np.int8)
        if not fixed_loops.codes_of_images(x, *self.image_constants, codes):
            return None
        logits = self._on_cpu(codes).astype(np.float32)
        return (logits - np.float32(self.logit_zero)) * np.float32(self.logit_scale)

    def _program_of(self, count: int) -> Program | None:
        """The graph as one call for so many images, made anew where weights have changed; None where it is slower."""
        if not 0 < count <= self._most:
            return None
        if self._program is None or not self._program.is_of_now():
            convs = [module for module in self.modules() if isinstance(module, IntegerConv)]
            logit = (np.float32(self.logit_scale), np.float32(self.logit_zero))
            self._program = Program(self.spec, convs, image=self.image_constants, logit=logit)
        return self._program


def _has_loops(codes: Tensor) -> bool:
    return codes.device.type == "cpu"


def _layer(spec: Layer) -> IntegerConv | IntegerPool | IntegerBlock:
    if isinstance(spec, ConvSpec):
        return IntegerConv(spec)
    return IntegerPool(spec) if isinstance(spec, PoolSpec) else IntegerBlock(spec)
