"""What multiplies int8 codes here, against an exact float32 product of them and a GEMM of floats, without im2col.

    python -m octo_exp.bench.multiplier model=vgg11 data=cifar10 --batch 16

The three GEMMs of each convolution but the first, operands laid out as they come. `codes` is what kernel=torch takes on
this CPU, `exact` the float32 product that stands in where neither torch nor a compiled loop multiplies int8: it
converts both operands, and splits sums of more than 1,024 products. Both are compared before they are timed.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from octo_exp.base.errors import FailedError
from octo_exp.bench.command import parser_of, report
from octo_exp.bench.kernels import codes, geometry_of, layers
from octo_exp.bench.measure import alternate, describe, machine, pairwise_ratio
from octo_exp.kernels.int8 import float_matmul
from octo_exp.kernels.ops import backend

_SUBJECTS = ("codes", "exact", "floats")


def operands(conv: nn.Conv2d, shape: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the operands [M, K], [K, N] of each role of a convolution on inputs of `shape` [N, C, H, W]."""
    n, _, height, width = shape
    kh, kw = conv.weight.shape[2:]
    oh, ow = geometry_of(conv).output_size(height, width, (kh, kw))
    taps, c, o = kh * kw, conv.in_channels // conv.groups, conv.out_channels // conv.groups
    return {
        "forward": (codes(n * oh * ow, taps * c), codes(o, taps * c).t()),
        "grad_input": (codes(n * height * width, taps * o), codes(taps * o, c)),
        "grad_weight": (codes(n * oh * ow, o).t(), codes(n * oh * ow, taps * c)),
    }


def measure(overrides: Sequence[str], *, batch_size: int, rounds: int) -> dict[str, Any]:
    """Return the rate of each subject and how much longer the floats take, every GEMM and all together."""
    on, rows = backend("torch", "cpu"), []
    total: dict[str, list[float]] = {name: [0.0] * rounds for name in _SUBJECTS}
    for name, conv, shape in layers(overrides, batch_size):
        for role, (a, b) in operands(conv, shape).items():
            if not torch.equal(on.int8_matmul(a, b), float_matmul(a, b)):
                raise FailedError(f"{name} {role}: the products differ: nothing is printed")
            x, y = a.float(), b.float()
            steps = {
                "codes": lambda a=a, b=b: on.int8_matmul(a, b),
                "exact": lambda a=a, b=b: float_matmul(a, b),
                "floats": lambda x=x, y=y: x @ y,
            }
            times = alternate(steps, warmup=1, rounds=rounds)
            total = {s: [t + u for t, u in zip(total[s], times[s], strict=True)] for s in _SUBJECTS}
            rows.append(_row(f"{name} {role}", times, 2 * a.numel() * b.shape[1]))
    rows.append(_row("all", total, sum(row["operations"] for row in rows)))
    facts = {"overrides": list(overrides), "batch": batch_size, "machine": machine()}
    return {**facts, "multiplier": on.multiplier, "gemms": rows}


def _row(name: str, times: Mapping[str, list[float]], operations: int) -> dict[str, Any]:
    rates = {s: operations / statistics.median(times[s]) / 1e6 for s in _SUBJECTS}
    ratios = {s: pairwise_ratio(times, s, "codes") for s in _SUBJECTS[1:]}
    return {"gemm": name, "operations": operations, "rates": rates, "ratios": ratios}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print a row a GEMM."""
    title = f"{' '.join(result['overrides'])}, batch {result['batch']}, codes by {result['multiplier']}"
    table = Table(title=title, caption=describe(result["machine"]))
    table.add_column("GEMM, GOP/s", no_wrap=True)
    for subject in _SUBJECTS:
        table.add_column(subject, justify="right")
    for subject in _SUBJECTS[1:]:
        table.add_column(f"{subject} / codes", justify="right")
    for row in result["gemms"]:
        ratios = [f"{r['ratio']:.2f} ({r['p10']:.2f}-{r['p90']:.2f})" for r in row["ratios"].values()]
        table.add_row(row["gemm"], *(f"{row['rates'][s]:,.0f}" for s in _SUBJECTS), *ratios)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the JSON where asked."""
    parser = parser_of(__doc__, rounds=9)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_intermixed_args(arguments)
    settings = {"batch_size": options.batch, "rounds": options.rounds}
    return report(options, lambda: measure(options.overrides, **settings), show)


if __name__ == "__main__":
    sys.exit(main())
