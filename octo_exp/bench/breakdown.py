"""Where the milliseconds of a training step go on the CPU path: GEMMs, each compiled loop, torch's own operations.

python -m octo_exp.bench.breakdown model=vgg11 data=cifar10 --quant int8
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from octo_exp.base.errors import UserError
from octo_exp.bench.command import failed
from octo_exp.bench.measure import describe, machine
from octo_exp.bench.subjects import Subject, build
from octo_exp.kernels.cpu import conv, loops

LOOPS = (
    "quantize",
    "quantize_rows",
    "columns_of_input",
    "columns_of_gradient",
    "finish",
    "finish_pool",
    "scale_rows",
    "mask_bits",
    "mask_index",
    "spread",
)
TORCH = {"range (aminmax)": (torch, "aminmax"), "float GEMM": (torch, "mm"), "float GEMM by image": (torch, "bmm")}


@contextmanager
def _timed(owner: Any, name: str, label: str, spent: dict[str, float]) -> Iterator[None]:
    original: Callable[..., Any] = getattr(owner, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = original(*args, **kwargs)
        spent[label] += (time.perf_counter() - start) * 1e3
        return out

    with mock.patch.object(owner, name, run):
        yield


def profile(subject: Subject, *, rounds: int) -> dict[str, float]:
    """Return milliseconds a step by what was running, medians of `rounds`; they add up to "step" but for rounding."""
    for _ in range(3):
        subject.step()
    steps: list[dict[str, float]] = []
    for _ in range(rounds):
        spent: dict[str, float] = defaultdict(float)
        with ExitStack() as stack:
            stack.enter_context(_timed(conv, "multiply", "int8 GEMM", spent))
            for name in LOOPS:
                stack.enter_context(_timed(loops, name, f"loop {name}", spent))
            for label, (owner, name) in TORCH.items():
                stack.enter_context(_timed(owner, name, label, spent))
            stack.enter_context(_timed(subject.optimizer, "step", "optimizer", spent))
            start = time.perf_counter()
            subject.step()
            spent["step"] = (time.perf_counter() - start) * 1e3
        spent["everything else"] = 2 * spent["step"] - sum(spent.values())
        steps.append(spent)
    labels = {label for spent in steps for label in spent}
    return {label: statistics.median(spent[label] for spent in steps) for label in labels}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        spent = profile(build(options.quant, options.overrides, batch_size=options.batch), rounds=options.rounds)
    except UserError as error:
        return failed(error)
    title = f"{' '.join(options.overrides)} quant={options.quant}, batch {options.batch}"
    table = Table("what", "ms", "share", title=title, caption=describe(machine()))
    for label, ms in sorted(spent.items(), key=lambda item: -item[1]):
        table.add_row(label, f"{ms:.1f}", f"{ms / spent['step']:.0%}")
    Console(markup=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
