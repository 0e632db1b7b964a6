"""Each step of an ONNX model beside the integer path's own, on equal inputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octo_exp.exports.onnx import runtime
from octo_exp.exports.onnx.model import build_alone
from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.operations import INPUT, Step, images_of, steps_of
from octo_exp.graph.spec import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Outputs of steps: how many were compared, how many differ, by how many codes at most."""

    outputs: int = 0
    different: int = 0
    largest: int = 0

    def __add__(self, other: "Differences") -> "Differences":
        return Differences(
            outputs=self.outputs + other.outputs,
            different=self.different + other.different,
            largest=max(self.largest, other.largest),
        )


def compare_steps(net: IntegerNet, images: Iterable[Tensor]) -> dict[str, Differences]:
    """Images [N, C, S, S] in chunks -> what differs in each step, by its name; `input` is the images' own codes."""
    running, steps = runtime.session(build_alone(net.spec).SerializeToString()), steps_of(net.spec)
    images_made = images_of(net.spec)
    found = dict.fromkeys(images_made, Differences())
    for x in images:
        made = run_steps(net, net.codes_of(x))
        outputs = runtime.run(running, {INPUT: np.ascontiguousarray(x.numpy())} | _inputs(steps, made))
        for name, image in images_made.items():
            found[name] += _differences(_codes(outputs[f"{name}.out"], image), made[name].numpy())
    return found


@torch.no_grad()
def run_steps(net: IntegerNet, codes: Tensor) -> dict[str, Tensor]:
    """codes [N, C, S, S] int8 of the image -> these, and the codes that each step makes, by its name."""
    made = {INPUT: codes}
    for step, module in net.steps():
        made[step.name] = module(*(made[name] for name in step.reads))
    return made


def _inputs(steps: list[Step], made: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {
        f"{step.name}.in{i}": _real(made[source].numpy(), image)
        for step in steps
        for i, (source, image) in enumerate(zip(step.reads, step.takes, strict=True))
    }


def _real(codes: np.ndarray, image: Image) -> np.ndarray:
    """Codes -> floats that QuantizeLinear makes the same codes of: n * s / s is n to far less than a half."""
    return np.ascontiguousarray((codes.astype(np.float32) - np.float32(image.zero)) * np.float32(image.scale))


def _codes(real: np.ndarray, image: Image) -> np.ndarray:
    return np.rint(real / np.float32(image.scale)).astype(np.int64) + image.zero


def _differences(theirs: np.ndarray, ours: np.ndarray) -> Differences:
    off = np.abs(theirs.reshape(len(theirs), -1) - ours.reshape(len(ours), -1))
    return Differences(outputs=off.size, different=int((off > 0).sum()), largest=int(off.max(initial=0)))
