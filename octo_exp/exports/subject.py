"""What is exported: the int8 graph of a run, in integers alone, and the test images that every file is tried on."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.base.progress import with_progress
from octo_exp.exports.source import Given, Source
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.parts import Q_MAX
from octo_exp.graph.spec import ModelSpec
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.heads import FloatHead
from octo_exp.graph.train.to_spec import spec_of
from octo_exp.hw.profile import HardwareProfile
from octo_exp.nn.fold import folded
from octo_exp.runs.posttraining import GRAPH_FILE, quantized

log = logging.getLogger(__name__)

# Training images that a float head's largest logit is looked for in.
_LOGIT_IMAGES = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """An int8 graph, a run's or one that is given.

    net: the integer path, which every file must equal. spec: its values. original: the same before biases were pulled
    into int32, of which few graphs have any. origin: `native` (the run's own graph), `ptq`
    (written by the run), `calibrated` (made of a trained net now) or `given`. profile: the device it is meant for, or
    None.
    """

    source: Source | Given
    spec: ModelSpec
    original: ModelSpec
    net: IntegerNet
    origin: str
    profile: HardwareProfile | None

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield normalised test images [N, C, S, S] and their labels [N]; None where images alone are given."""
        return self.source.test_batches()


def graph_of(source: Source, *, calibration: Mapping[str, Any], profile: HardwareProfile | None) -> Graph:
    """Return the int8 graph of a run: its own, or a quantised copy of its float network with LAC and norms folded.

    Args:
        source: the run.
        calibration: how a float network is quantised, the settings of `quant.calibration`.
        profile: see `Graph`.

    Raises:
        UserError: what has no int8 form, by name; a graph that cannot run in integers.

    """
    origin, spec = _spec_of(source, calibration)
    return _in_integers(spec, source, origin=origin, profile=profile)


def given_graph(spec: ModelSpec, images: Sequence[Tensor], *, profile: HardwareProfile | None) -> Graph:
    """Return a graph that is no run's, with batches of images [N, C, S, S] to try its files on.

    Raises:
        UserError: images of another shape than the graph reads; a graph that cannot run in integers.

    """
    image = spec.image
    wanted = (image.channels, image.size, image.size)
    for batch in images:
        if batch.ndim != 4 or tuple(batch.shape[1:]) != wanted or not len(batch):
            raise UserError(
                f"images must be [N, {', '.join(map(str, wanted))}], as the graph reads them; got {list(batch.shape)}"
            )
    return _in_integers(spec, Given(images=images), origin="given", profile=profile)


def _in_integers(spec: ModelSpec, source: Source | Given, *, origin: str, profile: HardwareProfile | None) -> Graph:
    net = IntegerNet(spec).eval()
    return Graph(source=source, spec=net.spec, original=spec, net=net, origin=origin, profile=profile)


def _spec_of(source: Source, calibration: Mapping[str, Any]) -> tuple[str, ModelSpec]:
    net = source.net
    if isinstance(net, McuNet):
        if clamped := clamped_weights(net):
            log.warning(
                "%d weights lie beyond int8 and become -127 or 127: the graph is not quite what was trained; "
                "update.mode=strict_int8 keeps them within",
                clamped,
            )
        return "native", spec_of(net, logits_absmax=_logits_absmax(source) if isinstance(net.head, FloatHead) else None)
    file = source.folder / GRAPH_FILE
    # One that an earlier run left in the folder is not this run's.
    if source.cfg.quant.name == "ptq" and file.is_file():
        return "ptq", read_model(file)
    try:
        net = folded(net, source.fresh_model())
    except UserError as error:
        raise UserError(f"run={source.folder}: {error}") from error
    return "calibrated", quantized(net, source.datamodule, calibration)


def clamped_weights(net: nn.Module) -> int:
    """How many float masters of an int8 graph lie beyond what its codes can hold; 0 of any other network."""
    masters = [conv.weight for conv in net.convs] if isinstance(net, McuNet) else []
    return sum(int((master.round().abs() > Q_MAX).sum()) for master in masters)


@torch.no_grad()
def _logits_absmax(source: Source) -> float:
    images = min(_LOGIT_IMAGES, source.datamodule.train_size)
    return max(float(source.net(batch).abs().max()) for batch in source.datamodule.calibration_batches(images))


@torch.no_grad()
def comparison(graph: Graph, source: Source) -> dict[str, Any]:
    """Return how the integer path and the network of the run's checkpoint do on the test images of its run.

    That of a run of quant=ptq is the float network, before quantisation.
    """
    images = same = right = right_before = 0
    for x, labels in with_progress(source.test_batches(), "test images"):
        ours, theirs = graph.net(x).argmax(1), source.net(x).argmax(1)
        images += len(labels)
        same += int((ours == theirs).sum())
        right += int((ours == labels).sum())
        right_before += int((theirs == labels).sum())
    return {
        "test_images": images,
        "same_class_as_run": same / images,
        "accuracy": right / images,
        "accuracy_of_run": right_before / images,
    }
