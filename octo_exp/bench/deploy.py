"""Inference of one int8 graph, side by side: here in integers, in onnxruntime, and its float network.

    python -m octo_exp.bench.deploy model=vgg11 data=cifar10

The model is quantised on random images (its accuracy does not matter to its speed) and exported to ONNX. `integers` is
`octo_exp.graph.integers`, float images in and logits out; `onnxruntime` runs the exported file with as many threads;
`float` is the network in torch, channels-last. Before anything is timed, both int8 forms must give one class for 99.5 %
of the images. `--json FILE` keeps it all.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from octo_exp.base.errors import FailedError, UserError
from octo_exp.bench.command import batch_sizes, parser_of, report
from octo_exp.bench.measure import describe, in_turns, machine, pairwise_ratio
from octo_exp.bench.subjects import batch, config, float_net
from octo_exp.graph.integers import IntegerNet
from octo_exp.runs.assemble.nets import channels_last
from octo_exp.runs.posttraining import quantized_by

SUBJECTS = ("integers", "onnxruntime", "float")
_CALIBRATION_IMAGES = 64
_AGREEMENT = 0.995
_CHECKED = 512
# Images a turn, at least one batch.
_CALLS = 32


def build(overrides: Sequence[str], folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what is timed, by its name: images [N, C, S, S] float32 -> logits [N, classes]."""
    cfg = config([*overrides, "quant=ptq"])
    net = channels_last(settled(float_net(cfg), batch(cfg, _CALIBRATION_IMAGES)[0]))
    spec = quantized_by(net, [batch(cfg, _CALIBRATION_IMAGES)[0]], cfg.quant.calibration)
    return {"integers": IntegerNet(spec).eval(), "onnxruntime": _onnxruntime(spec, folder / "model.onnx"), "float": net}


@torch.no_grad()
def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """Return the net in eval mode, its norms with the statistics of the images."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
    net.train()(images)
    return net.eval()


def _onnxruntime(spec: Any, path: Path) -> Callable[[Tensor], Tensor]:
    # An extra: who does not time it need not have it.
    try:
        import onnx

        from octo_exp.exports.onnx.model import build as build_onnx
        from octo_exp.exports.onnx.runtime import run, session
    except ImportError as error:
        raise UserError(f"{error.name} is missing; pip install 'octo-exp[export]'") from error
    onnx.save(build_onnx(spec), path)
    running = session(path)
    name = running.get_inputs()[0].name

    def forward(images: Tensor) -> Tensor:
        (logits,) = run(running, {name: images.numpy()}).values()
        return torch.from_numpy(logits)

    return forward


@torch.no_grad()
def check(subjects: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor) -> None:
    """Raise UserError where the two int8 forms disagree."""
    ours, theirs = (subjects[name](images).argmax(1) for name in SUBJECTS[:2])
    same = float((ours == theirs).float().mean())
    if same < _AGREEMENT:
        raise FailedError(f"integers and onnxruntime agree on {same:.1%} of the images: nothing is timed")


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds and ratios by batch size."""
    cfg, rows = config([*options.overrides, "quant=ptq"]), {}
    with tempfile.TemporaryDirectory() as folder:
        subjects = build(options.overrides, Path(folder))
        check(subjects, batch(cfg, _CHECKED)[0])
        for size in options.batches:
            # As each is fastest with it: torch channels-last, onnxruntime as its input is declared.
            images = batch(cfg, size)[0]
            given = {"float": images.contiguous(memory_format=torch.channels_last)}
            steps = {name: _call(subjects[name], given.get(name, images)) for name in SUBJECTS}
            times = in_turns(steps, rounds=options.rounds, calls=max(1, _CALLS // size))
            rows[size] = {
                "milliseconds": {name: statistics.median(values) for name, values in times.items()},
                "ratio": {name: pairwise_ratio(times, name, "integers") for name in SUBJECTS[1:]},
            }
    return {"overrides": options.overrides, "rounds": options.rounds, "machine": machine(), "batches": rows}


def _call(subject: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    return lambda: subject(images)


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print a line for each batch size."""
    table = Table(title=f"inference, {' '.join(result['overrides'])}", caption=describe(result["machine"]))
    columns = (*(f"{name}, ms" for name in SUBJECTS), *(f"{name} / integers" for name in SUBJECTS[1:]))
    for column in ("batch", *columns):
        table.add_column(column, justify="right")
    for size, row in result["batches"].items():
        ratios = [f"{r['ratio']:.2f} ({r['p10']:.2f}-{r['p90']:.2f})" for r in row["ratio"].values()]
        table.add_row(str(size), *(f"{row['milliseconds'][name]:.2f}" for name in SUBJECTS), *ratios)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and keep the JSON where asked."""
    parser = parser_of(__doc__)
    parser.set_defaults(overrides=["model=vgg11", "data=cifar10"])
    parser.add_argument("--batches", type=batch_sizes, default="1,64", help="sizes, comma-separated")
    options = parser.parse_intermixed_args(arguments)
    return report(options, lambda: measure(options), show)


if __name__ == "__main__":
    sys.exit(main())
