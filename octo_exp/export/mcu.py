"""The model format of microcontroller graphs: written, read back, and run on the test images before it is kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_exp.errors import UserError
from octo_exp.export.source import Source
from octo_exp.mcu.export import spec_of
from octo_exp.mcu.graph import McuNet
from octo_exp.mcu.heads import FloatHead
from octo_exp.mcu.reader import read_model
from octo_exp.mcu.writer import write_model

SUFFIX = ".pkl"
# Training images that a float head's largest logit is looked for in.
_CALIBRATION_IMAGES = 256


def export(source: Source, path: Path) -> dict[str, Any]:
    """Write the run's int8 graph to `path` if it verifies; return what the manifest says of it.

    Masters are rounded into int8 and int32, a float head is quantised. The file is written beside its place, read back
    and run on the test images: its logits must be those of the exported graph, bit for bit, and the run's own where the
    run's network consists of such integers already (update.mode=strict_int8 and an int8 head, or nothing trained).

    Raises:
        UserError: a run without int8 graph, or a file that does not verify; nothing is left behind then.

    """
    net = source.net
    if not isinstance(net, McuNet):
        raise UserError(
            f"format=mcu holds int8 graphs, and {source.folder} was trained with quant={source.cfg.quant.name}; "
            f"quantise it first: python train.py quant=native init_from={source.folder}"
        )
    spec = spec_of(net, logits_absmax=_logits_absmax(source) if isinstance(net.head, FloatHead) else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    unverified = path.with_name(f".unverified-{path.name}")
    write_model(spec, unverified)
    try:
        facts = _verify(source, McuNet.with_classifier(spec, mode=net.mode), unverified)
        unverified.replace(path)
    finally:
        unverified.unlink(missing_ok=True)
    start = {"input_scale": spec.input.scale, "input_zero": spec.input.zero}
    counts = {"dead_channels": spec.dead_channels, "macs": spec.macs, "parameters": spec.params}
    return {**start, **counts, **facts}


@torch.no_grad()
def _logits_absmax(source: Source) -> float:
    images = min(_CALIBRATION_IMAGES, source.datamodule.train_size)
    return max(float(source.net(batch).abs().max()) for batch in source.datamodule.calibration_batches(images))


def _test_batches(datamodule: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised test images and their labels."""
    for batch in datamodule.test_dataloader():
        yield datamodule.on_after_batch_transfer(batch, 0)


def consists_of_integers(net: McuNet) -> bool:
    """Whether its file holds all that a net computes with: every convolution int8 and int32, the head one of them."""
    in_range = [
        bool((master == master.round()).all()) and bool((master.abs() <= limit).all())
        for conv in net.convs
        for master, limit in ((conv.weight, 127), (conv.bias, 2**31 - 1))
    ]
    return not isinstance(net.head, FloatHead) and all(in_range)


@torch.no_grad()
def _verify(source: Source, graph: McuNet, path: Path) -> dict[str, Any]:
    again = McuNet.with_classifier(read_model(path), mode=graph.mode).eval()
    exact = consists_of_integers(source.net)
    images = same = right = right_before = 0
    for x, labels in _test_batches(source.datamodule):
        ours, expected = source.net(x), graph(x)
        if not torch.equal(again(x), expected):
            raise UserError(f"{path.name} does not verify: read back, it gives other logits; nothing is kept")
        if exact and not torch.equal(ours, expected):
            raise UserError(f"{path.name} does not verify: its logits are not the run's; nothing is kept")
        images += len(labels)
        same += int((ours.argmax(1) == expected.argmax(1)).sum())
        right += int((expected.argmax(1) == labels).sum())
        right_before += int((ours.argmax(1) == labels).sum())
    return {
        "logits_identical_to_run": exact,
        "test_images": images,
        "same_class_as_run": same / images,
        "accuracy": right / images,
        "accuracy_of_run": right_before / images,
    }
