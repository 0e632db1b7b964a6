"""Training steps of microcontroller graphs, side by side: the two arithmetics, and updates of less than everything.

    OCTO_MCU_DIR=models python -m octo_exp.bench.graphs

First `integer` against `float_order`, forward and backward pass of a full update; then updates of one model against
its full one, `integer`, with the optimizer's step, and the bytes that each keeps for the backward pass. Codes are
random and the learning rate is 0: nothing diverges. `--json FILE` keeps it all.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table
from torch import Tensor

from octo_exp.base.errors import FailedError, UserError
from octo_exp.bench.command import batch_sizes, parser_of, report
from octo_exp.bench.measure import alternate, describe, machine, pairwise_ratio
from octo_exp.bench.subjects import config
from octo_exp.graph.train.chains import MODES, Conv
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.runs.callbacks.kept_memory import SavedTensors

MODELS = ("mcunet_5fps", "mbv2_w035", "proxyless_w03")
UPDATES = ("full", "mcunet_5fps_99kb", "head_only")
CLASSES = 10
# Difference of two gradients of one tensor over its size, sums of absolute values: other orders of summation.
_GRADIENT_BUDGET = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A net under an update rule, its optimizer, and a batch."""

    net: McuNet
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor

    def backward(self) -> Tensor:
        """Run forward and backward pass; return the logits."""
        self.optimizer.zero_grad()
        logits: Tensor = self.net(self.images)
        F.cross_entropy(logits, self.labels).backward()
        return logits.detach()

    def step(self) -> None:
        """Run a whole step."""
        self.backward()
        self.optimizer.step()


def _instance(node: Any) -> Any:
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        # Its cause is one line; what Hydra makes of it is not.
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def build(model: str, update: str, overrides: Sequence[str], *, mode: str, batch_size: int) -> Subject:
    """Return a subject; the same float head and batch for all."""
    cfg = config([f"model={model}", f"update={update}", "update.lr=0", *overrides])
    torch.manual_seed(0)
    net = McuNet(_instance(cfg.model), num_classes=CLASSES, head="fp", mode=mode)
    rule = _instance(cfg["update"])
    rule.apply(net)
    (channels, size), meaning = net.spec.image[:2], net.spec.input
    codes = torch.randint(-127, 128, (batch_size, channels, size, size))
    return Subject(
        net=net,
        optimizer=rule.build_optimizer(net, rule.parameter_groups(net)),
        images=((codes - meaning.zero) * meaning.scale).float(),
        labels=torch.arange(batch_size) % CLASSES,
    )


def check_same(reference: Subject, subject: Subject, name: str) -> None:
    """Raise UserError where logits, or gradients of what the subject trains, are not the reference's."""
    if not torch.equal(reference.backward(), subject.backward()):
        raise FailedError(f"{name} does not give the logits that it is compared with: nothing is printed")
    kept = _kept_channels(subject.net)
    for (key, p), q in zip(reference.net.named_parameters(), subject.net.parameters(), strict=True):
        if not q.requires_grad:
            continue
        expected, found = (torch.zeros_like(q) if grad is None else grad for grad in (p.grad, q.grad))
        if q in kept:
            expected, found = (grad.index_select(*kept[q]) for grad in (expected, found))
        if not (found - expected).abs().sum() <= _GRADIENT_BUDGET * expected.abs().sum():
            raise FailedError(f"{name} has another gradient of {key} than it is compared with: nothing is printed")


def _kept_channels(net: McuNet) -> dict[Tensor, tuple[int, Tensor]]:
    """Return, by weight of which not all channels train, their axis and indices."""
    partial: list[Any] = [conv for conv in net.convs if conv.update.kept is not None]
    return {conv.weight: (0 if LayerShape.of(conv).depthwise else 1, conv.update.kept) for conv in partial}


def saved_bytes(subject: Subject) -> int:
    """Return what a forward pass keeps for the backward pass, all together, parameters apart."""
    with SavedTensors(subject.net) as saved:
        F.cross_entropy(subject.net(subject.images), subject.labels)
    return sum(saved.bytes_by_layer.values())


def saved_by_convs(subject: Subject) -> list[int]:
    """Return how many tensors each convolution of the chain keeps, from input to output."""
    net = subject.net
    steps = [step for layer in net.layers for step in layer.steps]
    # Held: older torch lets what a node has saved go with the node's output.
    features = net.features(net.input(subject.images))
    # A chain has three places a step.
    places = list(getattr(features.grad_fn, "saved_tensors", [None] * 3 * len(steps)))
    counts = [sum(t is not None for t in places[3 * k : 3 * k + 3]) for k in range(len(steps))]
    return [count for count, step in zip(counts, steps, strict=True) if isinstance(step, Conv)]


def check_frozen(subject: Subject, name: str) -> None:
    """Raise UserError where a convolution that trains nothing, with none that trains before it, keeps a tensor."""
    trains = [c.update.train_weight or c.update.train_bias for c in subject.net.convs]
    first = trains.index(True) if True in trains else len(trains)
    kept = sum(saved_by_convs(subject)[:first])
    if kept:
        raise FailedError(f"{name}: frozen convolutions keep tensors, {kept} of them: nothing is printed")


def compare_modes(models: Sequence[str], overrides: Sequence[str], *, batch_size: int, rounds: int) -> dict[str, Any]:
    """Return, by model, milliseconds of each arithmetic and the ratio float_order / integer."""
    found = {}
    for model in models:
        subjects = {mode: build(model, "full", overrides, mode=mode, batch_size=batch_size) for mode in MODES}
        check_same(subjects["float_order"], subjects["integer"], f"integer on {model}")
        steps: dict[str, Callable[[], object]] = {mode: subject.backward for mode, subject in subjects.items()}
        times = alternate(steps, warmup=3, rounds=rounds)
        found[model] = {"ratio": pairwise_ratio(times, "float_order", "integer"), **_medians(times)}
    return found


def compare_updates(
    model: str, updates: Sequence[str], overrides: Sequence[str], *, batch_size: int, rounds: int
) -> dict[str, Any]:
    """Return, by update, milliseconds of a step, the ratio of the first one's to it, and the bytes kept."""
    subjects = {u: build(model, u, overrides, mode="integer", batch_size=batch_size) for u in updates}
    for update, subject in subjects.items():
        check_same(subjects[updates[0]], subject, f"update={update}")
        check_frozen(subject, f"update={update}")
    times = alternate({update: subject.step for update, subject in subjects.items()}, warmup=3, rounds=rounds)
    medians = _medians(times)["milliseconds"]
    return {
        update: {
            "milliseconds": medians[update],
            "ratio": pairwise_ratio(times, updates[0], update),
            "saved_bytes": saved_bytes(subject),
        }
        for update, subject in subjects.items()
    }


def _medians(times: Mapping[str, list[float]]) -> dict[str, Any]:
    return {"milliseconds": {name: statistics.median(values) for name, values in times.items()}}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print a table of the arithmetics, and one of the updates a batch size."""
    modes = result["modes"]
    table = Table(title=f"full update, batch {result['batches'][0]}: forward + backward")
    for column in ("model", *(f"{mode}, ms" for mode in MODES), "float_order / integer"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, row in modes.items():
        table.add_row(model, *(f"{row['milliseconds'][mode]:.1f}" for mode in MODES), _ratio(row["ratio"]))
    console.print(table)
    for batch, rows in result["updates"].items():
        title = f"{result['model']}, batch {batch}: forward + backward + step"
        table = Table(title=title, caption=describe(result["machine"]))
        for column in ("update", "ms", f"{next(iter(rows))} / it", "kept for backward, KiB"):
            table.add_column(column, justify="left" if column == "update" else "right")
        for update, row in rows.items():
            kept = f"{row['saved_bytes'] / 1024:,.1f}"
            table.add_row(update, f"{row['milliseconds']:.1f}", _ratio(row["ratio"]), kept)
        console.print(table)


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was measured."""
    models, updates = options.models.split(","), options.updates.split(",")
    common = {"overrides": options.overrides, "rounds": options.rounds}
    return {
        "overrides": options.overrides,
        "rounds": options.rounds,
        "machine": machine(),
        "model": models[0],
        "batches": options.batches,
        "modes": compare_modes(models, batch_size=options.batches[0], **common),
        "updates": {size: compare_updates(models[0], updates, batch_size=size, **common) for size in options.batches},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and keep the JSON where asked."""
    parser = parser_of(__doc__, threads=1)
    parser.add_argument("--models", default=",".join(MODELS), help="the updates are those of the first")
    parser.add_argument("--updates", default=",".join(UPDATES), help="the others are compared with the first")
    parser.add_argument("--batches", type=batch_sizes, default="8,1", help="the arithmetics are compared at the first")
    options = parser.parse_intermixed_args(arguments)
    return report(options, lambda: measure(options), show)


if __name__ == "__main__":
    sys.exit(main())
