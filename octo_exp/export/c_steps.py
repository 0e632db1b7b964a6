"""An integer graph as a sequence of steps on tensors: what a C file calls one after another."""

from dataclasses import dataclass
from math import prod

from octo_exp.deploy.net import IntegerAdd, IntegerBlock, IntegerConv, IntegerNet, IntegerPool
from octo_exp.mcu.spec import BlockSpec, ConvSpec, PoolSpec, ResidualSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One operation on images in NHWC.

    name: a C identifier. title: for comments and messages. layer, spec: its integers, its shapes. reads, writes:
    tensors. over: those of `reads` that may share their first byte with what it writes. scratch_bytes: what it needs
    beside them while it runs.
    """

    name: str
    title: str
    layer: IntegerConv | IntegerPool | IntegerAdd
    spec: ConvSpec | PoolSpec | ResidualSpec
    reads: tuple[int, ...]
    writes: int
    over: tuple[int, ...]
    scratch_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Steps in order; sizes: bytes of every tensor, of which 0 is the image and the last the logits."""

    steps: tuple[Step, ...]
    sizes: tuple[int, ...]

    @property
    def tensors(self) -> range:
        """Return the tensors between image and logits."""
        return range(1, len(self.sizes) - 1)


def program_of(net: IntegerNet) -> Program:
    """Return the steps of a graph."""
    image = net.spec.image
    builder = _Builder(image.channels * image.size**2)
    tensor = 0
    for i, (layer, spec) in enumerate(zip(net.layers, net.spec.layers, strict=True)):
        tensor = builder.layer(f"layer {i}", layer, spec, tensor)
    builder.conv("classifier", net.classifier, net.spec.classifier, tensor)
    return Program(steps=tuple(builder.steps), sizes=tuple(builder.sizes))


class _Builder:
    def __init__(self, image_bytes: int) -> None:
        self.steps: list[Step] = []
        self.sizes = [image_bytes]

    def layer(self, where: str, layer: object, spec: object, tensor: int) -> int:
        """Return the tensor that a layer makes of another."""
        if isinstance(layer, IntegerConv) and isinstance(spec, ConvSpec):
            return self.conv(where, layer, spec, tensor)
        if isinstance(layer, IntegerPool) and isinstance(spec, PoolSpec):
            return self.pool(where, layer, spec, tensor)
        assert isinstance(layer, IntegerBlock)
        assert isinstance(spec, BlockSpec)
        body, shortcut = tensor, tensor
        for i, (conv, shape) in enumerate(zip(layer.body, spec.body, strict=True)):
            body = self.conv(f"{where}, body {i}", conv, shape, body)
        for i, (conv, shape) in enumerate(zip(layer.shortcut, spec.shortcut, strict=True)):
            shortcut = self.conv(f"{where}, shortcut {i}", conv, shape, shortcut)
        return body if layer.add is None else self.add(f"{where}, addition", layer.add, spec.residual, shortcut, body)

    def conv(self, where: str, layer: IntegerConv, spec: ConvSpec, tensor: int) -> int:
        """Return the tensor that a convolution makes."""
        after = (spec.out_size, spec.out_size, spec.out_channels)
        title = f"{where}: {kind_of(spec)} {_shape(spec.in_size, spec.in_channels)} -> {_shape(*after[1:])}"
        title += f", {spec.macs:,} MACs"
        scratch = 0 if reads_in_place(spec) else prod(spec.weight.shape[1:])
        return self._step(where, title, layer, spec, (tensor,), prod(after), scratch=scratch)

    def pool(self, where: str, layer: IntegerPool, spec: PoolSpec, tensor: int) -> int:
        """Return the tensor that a pool makes. Without padding no window begins before the pixel that it makes."""
        shapes = f"{_shape(spec.in_size, spec.channels)} -> {_shape(spec.out_size, spec.channels)}"
        title = f"{where}: {spec.kind} pool {spec.kernel}x{spec.kernel}, stride {spec.stride}, {shapes}"
        over = () if spec.padding else (tensor,)
        return self._step(where, title, layer, spec, (tensor,), spec.channels * spec.out_size**2, over=over)

    def add(self, where: str, layer: IntegerAdd, spec: ResidualSpec, shortcut: int, body: int) -> int:
        """Return the tensor that an addition makes."""
        title, reads = f"{where}: {_shape(spec.size, spec.channels)}", (shortcut, body)
        return self._step(where, title, layer, spec, reads, spec.channels * spec.size**2, over=reads)

    def _step(
        self,
        where: str,
        title: str,
        layer: IntegerConv | IntegerPool | IntegerAdd,
        spec: ConvSpec | PoolSpec | ResidualSpec,
        reads: tuple[int, ...],
        made_bytes: int,
        *,
        over: tuple[int, ...] = (),
        scratch: int = 0,
    ) -> int:
        writes, name = len(self.sizes), where.replace(",", "").replace(" ", "_")
        self.sizes.append(made_bytes)
        self.steps.append(
            Step(
                name=name,
                title=title,
                layer=layer,
                spec=spec,
                reads=reads,
                writes=writes,
                over=over,
                scratch_bytes=scratch,
            )
        )
        return writes


def is_depthwise(spec: ConvSpec) -> bool:
    """Whether each output channel reads one input channel, its own."""
    return spec.groups == spec.in_channels == spec.out_channels > 1


def reads_in_place(spec: ConvSpec) -> bool:
    """Whether what the kernel sees at a place lies contiguous in the image, or no such thing is needed."""
    rows, columns = spec.kernel_size
    whole_rows = rows == 1 or columns == spec.in_size
    contiguous = (rows, columns) == (1, 1) or (spec.groups == 1 and whole_rows)
    return is_depthwise(spec) or (spec.padding == (0, 0) and contiguous)


def kind_of(spec: ConvSpec) -> str:
    """Return kind, kernel, stride and groups of a convolution in words."""
    words = ["depthwise" if is_depthwise(spec) else "convolution", "{}x{}".format(*spec.kernel_size)]
    words += [f"stride {spec.stride}"] if spec.stride > 1 else []
    words += [f"{spec.groups} groups"] if spec.groups > 1 and not is_depthwise(spec) else []
    return f"{words[0]} {', '.join(words[1:])},"


def _shape(size: int, channels: int) -> str:
    return f"{size}x{size}x{channels}"
