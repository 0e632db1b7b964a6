"""An int8 graph as a straight line of named steps: convolutions, pools, additions, in order of execution."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from octo_exp.graph.parts import BlockSpec, ConvSpec, Image, PoolSpec, ResidualSpec
from octo_exp.graph.spec import Layer, ModelSpec

# The name of what the first step reads.
INPUT = "input"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One operation: the names of the steps that it reads, their images, and the image that it makes.

    An addition reads what the shortcut gives, then what the body gives.
    """

    name: str
    part: ConvSpec | PoolSpec | ResidualSpec
    reads: tuple[str, ...]
    takes: tuple[Image, ...]
    gives: Image

    @property
    def macs(self) -> int:
        """Return multiply-adds for one image; 0 for what is no convolution."""
        return self.part.macs if isinstance(self.part, ConvSpec) else 0

    @property
    def params(self) -> int:
        """Return the number of weights and biases."""
        return self.part.params if isinstance(self.part, ConvSpec) else 0


def steps_of(spec: ModelSpec) -> list[Step]:
    """Return a graph's steps: layer0, layer1.body0, layer1.shortcut0, layer1.add, ..., classifier last."""
    steps: list[Step] = []
    source, image = INPUT, spec.image
    for i, layer in enumerate(spec.layers):
        steps += _layer(f"layer{i}", layer, source, image)
        source, image = steps[-1].name, steps[-1].gives
    return [*steps, _one("classifier", spec.classifier, source, image)]


def images_of(spec: ModelSpec) -> dict[str, Image]:
    """Return the image of every name that a step reads or makes, in order: INPUT, then what each step gives."""
    return {INPUT: spec.image} | {step.name: step.gives for step in steps_of(spec)}


def last_reads(steps: Sequence[Step]) -> dict[str, int]:
    """Return for every name the place of the last step that reads it."""
    return {name: k for k, step in enumerate(steps) for name in step.reads}


def _layer(name: str, layer: Layer, source: str, image: Image) -> list[Step]:
    return _block(name, layer, source, image) if isinstance(layer, BlockSpec) else [_one(name, layer, source, image)]


def _one(name: str, part: ConvSpec | PoolSpec, source: str, image: Image) -> Step:
    gives = part.gives if isinstance(part, ConvSpec) else image._replace(size=part.out_size)
    return Step(name=name, part=part, reads=(source,), takes=(image,), gives=gives)


def _chain(name: str, convs: tuple[ConvSpec, ...], source: str, image: Image) -> Iterator[Step]:
    for j, conv in enumerate(convs):
        yield _one(f"{name}{j}", conv, source, image)
        source, image = f"{name}{j}", conv.gives


def _block(name: str, block: BlockSpec, source: str, image: Image) -> list[Step]:
    body = list(_chain(f"{name}.body", block.body, source, image))
    add = block.residual
    if add is None:
        return body
    shortcut = list(_chain(f"{name}.shortcut", block.shortcut, source, image))
    reads = (shortcut[-1].name if shortcut else source, body[-1].name)
    takes = (shortcut[-1].gives if shortcut else image, body[-1].gives)
    gives = Image(add.channels, add.size, add.y_scale, add.y_zero)
    return [*body, *shortcut, Step(name=f"{name}.add", part=add, reads=reads, takes=takes, gives=gives)]
