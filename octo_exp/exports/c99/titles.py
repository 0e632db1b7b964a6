"""What a C file needs to know of a graph's steps: their names in C, their titles, the memory that they take."""

from math import prod

from octo_exp.graph.operations import Step, images_of
from octo_exp.graph.spec import ConvSpec, Image, ModelSpec, PoolSpec


def name_of(step: Step) -> str:
    """Return a step's name as a C identifier."""
    return step.name.replace(".", "_")


def title_of(step: Step) -> str:
    """Return a step in words, for comments and messages: its name, what it does, its shapes."""
    part, shapes = step.part, f"{_shape(step.takes[0])} -> {_shape(step.gives)}"
    if isinstance(part, ConvSpec):
        return f"{step.name}: {_kind_of(part)}, {shapes}, {part.macs:,} MACs"
    if isinstance(part, PoolSpec):
        return f"{step.name}: {part.kind} pool {part.kernel}x{part.kernel}, stride {part.stride}, {shapes}"
    return f"{step.name}: {_shape(step.gives)}"


def sizes_of(spec: ModelSpec) -> dict[str, int]:
    """Return the bytes of every tensor by its name; the image's first, those of the logits last."""
    return {name: image.channels * image.size**2 for name, image in images_of(spec).items()}


def over_of(step: Step) -> tuple[str, ...]:
    """Return those that a step reads and that may share their first byte with what it writes.

    Without padding no window of a pool begins before the pixel that it makes.
    """
    part = step.part
    stays = isinstance(part, ConvSpec) or (isinstance(part, PoolSpec) and part.padding > 0)
    return () if stays else step.reads


def scratch_bytes_of(step: Step) -> int:
    """Return what a step needs beside its tensors while it runs."""
    part = step.part
    return prod(part.weight.shape[1:]) if isinstance(part, ConvSpec) and not _reads_in_place(part) else 0


def is_depthwise(spec: ConvSpec) -> bool:
    """Whether each output channel reads one input channel, its own."""
    return spec.groups == spec.in_channels == spec.out_channels > 1


def _reads_in_place(spec: ConvSpec) -> bool:
    """Whether what the kernel sees at a place lies contiguous in the image, or no such thing is needed."""
    rows, columns = spec.kernel_size
    whole_rows = rows == 1 or columns == spec.in_size
    contiguous = (rows, columns) == (1, 1) or (spec.groups == 1 and whole_rows)
    return is_depthwise(spec) or (spec.padding == (0, 0) and contiguous)


def _kind_of(spec: ConvSpec) -> str:
    words = ["{} {}x{}".format("depthwise" if is_depthwise(spec) else "convolution", *spec.kernel_size)]
    words += [f"stride {spec.stride}"] if spec.stride > 1 else []
    words += [f"{spec.groups} groups"] if spec.groups > 1 and not is_depthwise(spec) else []
    return ", ".join(words)


def _shape(image: Image) -> str:
    return f"{image.size}x{image.size}x{image.channels}"
