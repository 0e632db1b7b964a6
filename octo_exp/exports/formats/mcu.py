"""format=mcu: the model format of microcontroller graphs, read back and run on the test images before it is kept."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.base.errors import FailedError
from octo_exp.exports.evidence import Evidence
from octo_exp.exports.subject import Graph
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.heads import FloatHead

SUFFIX = ".pkl"


def write(graph: Graph, folder: Path, name: str) -> dict[str, Any]:
    """Write the graph."""
    write_model(graph.original, folder / f"{name}{SUFFIX}")
    return {}


def verify(graph: Graph, folder: Path, name: str) -> Evidence:
    """Read the file back and compute every test image with it.

    A run of quant=native computes the scales' part of a layer in float32 (`quant.mode`): that arithmetic is tried as
    well, and where the run's network consists of integers already (update.mode=strict_int8 and an int8 head, or nothing
    trained), its logits must be the run's own, bit for bit.

    Raises:
        UserError: its logits are not the run's, where they must be.

    """
    again = read_model(folder / f"{name}{SUFFIX}")
    own = graph.source.net if isinstance(graph.source.net, McuNet) else None
    exact = own is not None and consists_of_integers(own)
    nets: list[nn.Module] = [type(graph.net)(again).eval()]
    expected: list[nn.Module] = [graph.net]
    if own is not None:
        nets.append(McuNet.with_classifier(again, mode=own.mode).eval())
        expected.append(McuNet.with_classifier(graph.original, mode=own.mode).eval())
    images = equal = 0
    with torch.no_grad():
        for x, _ in graph.batches():
            made = [net(x) for net in expected]
            same = [_equal_rows(net(x), logits) for net, logits in zip(nets, made, strict=True)]
            images, equal = images + len(x), equal + int(torch.stack(same).all(0).sum())
            if own is not None and exact and not torch.equal(own(x), made[-1]):
                raise FailedError(f"{name}{SUFFIX} does not verify: its logits are not the run's; nothing is kept")
    # A run of quant=ptq is tested with the graph that this file was compared with; a graph that is given has no run.
    facts = {} if graph.origin == "given" else {"logits_identical_to_run": exact or graph.origin == "ptq"}
    return Evidence(images=images, equal=equal, by="octo_exp, of the file read back", facts=facts)


def _equal_rows(a: Tensor, b: Tensor) -> Tensor:
    """Two [N, classes] -> bool [N]; none is equal where a file has other classes."""
    return (a == b).all(1) if a.shape == b.shape else torch.zeros(len(b), dtype=torch.bool)


def consists_of_integers(net: McuNet) -> bool:
    """Whether its file holds all that a net computes with: every convolution int8 and int32, the head one of them."""
    in_range = [
        bool((master == master.round()).all()) and bool((master.abs() <= limit).all())
        for conv in net.convs
        for master, limit in ((conv.weight, 127), (conv.bias, 2**31 - 1))
    ]
    return not isinstance(net.head, FloatHead) and all(in_range)
