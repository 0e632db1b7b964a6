"""An ONNX file against the integer path, in onnxruntime: step by step on equal inputs, then the whole test set.

onnxruntime rescales sums in float32, and the integer path rounds as that does: convolutions are equal where sums stay
below 2^24, additions nearly always. The budget of 1e-5 holds for a graph's outputs together, for other machines order
their operations otherwise. A code that differs changes what comes after it, so whole graphs are compared by answers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from octo_exp.base.errors import FailedError, UserError
from octo_exp.exports.evidence import Evidence
from octo_exp.exports.onnx import runtime
from octo_exp.exports.onnx.compare import Differences, compare_steps
from octo_exp.exports.onnx.model import OUTPUT, build
from octo_exp.exports.subject import Graph
from octo_exp.graph.operations import INPUT, steps_of
from octo_exp.graph.spec import ModelSpec, PoolSpec

# Share of the steps' outputs that may be one code off.
MAX_DIFFERENT = 1e-5
# Test images that steps are compared on: as many as give so many outputs, but no more than these.
OUTPUTS, IMAGES = 2**22, 256
# Outputs of all steps that are held at a time.
_CHUNK = 2**22
MIN_SAME_CLASS, MAX_ACCURACY_CHANGE = 0.995, 0.001
MAX_SIZE = 0.3
# What a file needs beside its weights: a channel's bias and scale, a step's nodes and names.
CHANNEL_BYTES, STEP_BYTES = 8, 384


def verify(graph: Graph, path: Path) -> Evidence:
    """Return what onnxruntime gives; UserError with the figures where it is not the integer path's."""
    if onnx.load(path) != build(graph.spec):
        raise FailedError(f"{path.name} does not verify: read back, it is another model; nothing is kept")
    facts = {"onnxruntime": onnxruntime.__version__, **_size(graph.spec, path), **_steps(graph, path.name)}
    return _answers(graph, path, facts)


def _refuse(name: str, what: str) -> UserError:
    remedy = f"nothing is kept; try another onnxruntime than {onnxruntime.__version__}, or format=c"
    return FailedError(f"{name} does not verify in onnxruntime: {what}; {remedy}")


def _size(spec: ModelSpec, path: Path) -> dict[str, Any]:
    convs = (*spec.convs, spec.classifier)
    weights, channels = (sum(n) for n in zip(*((c.weight.size, c.out_channels) for c in convs), strict=True))
    in_float, size = 4 * (weights + channels), path.stat().st_size
    # Thin layers have few weights to a channel, and small graphs few to a name.
    needed = weights + CHANNEL_BYTES * channels + STEP_BYTES * (len(steps_of(spec)) + 1)
    if size > max(MAX_SIZE * in_float, needed):
        what = f"{size:,} bytes, {size / in_float:.2f} of its float32 parameters' {in_float:,}"
        raise FailedError(f"{path.name} is too large: {what}, where its integers need {needed:,}; nothing is kept")
    return {"bytes_of_float32_parameters": in_float, "size_of_float32_parameters": size / in_float}


def _steps(graph: Graph, name: str) -> dict[str, Any]:
    compared = compare_steps(graph.net, _images(graph))
    total = sum(compared.values(), Differences())
    worst = max(compared, key=lambda step: (compared[step].largest, compared[step].different))
    figures = f"{total.different:,} of {total.outputs:,} outputs differ, in {worst} by {compared[worst].largest} codes"
    exact = [s.name for s in steps_of(graph.spec) if isinstance(s.part, PoolSpec) and s.part.kind == "max"]
    wrong = next((pool for pool in exact if compared[pool].different), None)
    if wrong is not None:
        raise _refuse(name, f"{wrong}, a max pool, must be exact and is not; {figures}")
    if total.largest > 1 or total.different > np.ceil(MAX_DIFFERENT * total.outputs):
        raise _refuse(name, f"steps on equal inputs may be 1 code off in {MAX_DIFFERENT:g} of the outputs; {figures}")
    return {"step_outputs_compared": total.outputs, "step_outputs_one_code_off": total.different}


def _images(graph: Graph) -> Iterator[Tensor]:
    """Test images for the comparison of steps, in chunks."""
    per_image = sum(step.gives.channels * step.gives.size**2 for step in steps_of(graph.spec))
    left = min(IMAGES, -(-OUTPUTS // per_image))
    for batch, _ in graph.batches():
        images = batch[:left]
        yield from images.split(max(1, _CHUNK // per_image))
        left -= len(images)
        if left == 0:
            return


def _answers(graph: Graph, path: Path, facts: Mapping[str, Any]) -> Evidence:
    """The whole test set: what the file answers, and the operators that onnxruntime makes of it."""
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        running = runtime.session(path, optimized)
        operators = runtime.operators(optimized)
    images = same = labelled = right = right_before = 0
    for x, labels in graph.batches():
        logits = runtime.run(running, {INPUT: np.ascontiguousarray(x.numpy())})[OUTPUT]
        theirs, ours = torch.from_numpy(logits).argmax(1), graph.net(x).argmax(1)
        images += len(x)
        same += int((ours == theirs).sum())
        if labels is not None:
            labelled += len(x)
            right += int((theirs == labels).sum())
            right_before += int((ours == labels).sum())
    # Of few test images one is more than the budget.
    allowed = max(1, int((1 - MIN_SAME_CLASS) * images))
    if images - same > allowed:
        raise _refuse(path.name, f"{same:,} of {images:,} test images get the integer path's class, not 99.5 %")
    if abs(right - right_before) > max(1, MAX_ACCURACY_CHANGE * images):
        change = f"{right / images:.4f} where the integer path has {right_before / images:.4f}"
        raise _refuse(path.name, f"its accuracy on the test images is {change}")
    facts = {
        **facts,
        "integer_operators": {kind: operators[kind] for kind in runtime.INTEGER if operators[kind]},
        "float_operators": {kind: operators[kind] for kind in runtime.FLOAT if operators[kind]},
        "same_class_in_onnxruntime": same / images,
        **({"accuracy_in_onnxruntime": right / images} if labelled else {}),
    }
    by = f"onnxruntime {onnxruntime.__version__}"
    return Evidence(images=images, equal=same, of="classes", by=by, allowed=allowed, facts=facts)
