"""format=mcu: the model format of microcontroller graphs, read back and run on the test images before it is kept."""

from pathlib import Path
from typing import Any

import torch

from octo_exp.base.errors import FailedError
from octo_exp.export.subject import Graph
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.heads import FloatHead

SUFFIX = ".pkl"


def export(graph: Graph, folder: Path, name: str) -> dict[str, Any]:
    """Write the graph; what is read back must give its integers on every test image.

    A run of quant=native computes the scales' part of a layer in float32 (`quant.mode`): that arithmetic is tried as
    well, and where the run's network consists of integers already (update.mode=strict_int8 and an int8 head, or nothing
    trained), its logits must be the run's own, bit for bit.

    Raises:
        UserError: a file that does not verify.

    """
    path = folder / f"{name}{SUFFIX}"
    write_model(graph.original, path)
    again = read_model(path)
    own = graph.source.net if isinstance(graph.source.net, McuNet) else None
    exact = own is not None and consists_of_integers(own)
    nets = [type(graph.net)(again).eval()]
    expected = [graph.net]
    if own is not None:
        nets.append(McuNet.with_classifier(again, mode=own.mode).eval())
        expected.append(McuNet.with_classifier(graph.original, mode=own.mode).eval())
    with torch.no_grad():
        for x, _ in graph.batches():
            made = [net(x) for net in expected]
            if not all(torch.equal(net(x), logits) for net, logits in zip(nets, made, strict=True)):
                raise FailedError(f"{name}{SUFFIX} does not verify: read back, it gives other logits; nothing is kept")
            if exact and not torch.equal(own(x), made[-1]):
                raise FailedError(f"{name}{SUFFIX} does not verify: its logits are not the run's; nothing is kept")
    # A run of quant=ptq is tested with the graph that this file was compared with.
    return {"logits_identical_to_run": exact or graph.origin == "ptq"}


def consists_of_integers(net: McuNet) -> bool:
    """Whether its file holds all that a net computes with: every convolution int8 and int32, the head one of them."""
    in_range = [
        bool((master == master.round()).all()) and bool((master.abs() <= limit).all())
        for conv in net.convs
        for master, limit in ((conv.weight, 127), (conv.bias, 2**31 - 1))
    ]
    return not isinstance(net.head, FloatHead) and all(in_range)
