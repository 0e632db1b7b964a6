"""Speed of the cost model on one core, and what pricing a run costs beside its training.

`python -m octo_exp.bench.cost_model model=vgg11 data=cifar10` prices one training step on 49,152 machines: rows and
cols 1..128, three dataflows. It prints nothing where the vectorized cycles differ from the closed form in plain Python.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from octo_exp.base.errors import FailedError, UserError
from octo_exp.bench.command import failed
from octo_exp.bench.measure import describe, machine
from octo_exp.bench.subjects import Subject, build, config
from octo_exp.hw import (
    DATAFLOWS,
    EnergyTable,
    HardwareProfile,
    Machines,
    gemm_arrays,
    gemm_cycles,
    price_gemms,
    step_memory,
    training_step_cost,
)
from octo_exp.runs.cost_plots import save_cost_figure
from octo_exp.tracing import trace
from octo_exp.workload import Gemm, Workload

SIDE = 128
# Columns of so many machines stay in a core's cache.
CHUNK = 1024
EPOCH = 50_000


def plain_cycles(gemm: Gemm, rows: int, cols: int, dataflow: str) -> int:
    """Cycles of one int8 product in the convention "exact", in plain Python: what the vectorized form must equal."""
    down, along, streamed, preload = {
        "os": (gemm.m, gemm.n, gemm.k, 0),
        "ws": (gemm.k, gemm.n, gemm.m, rows),
        "is": (gemm.k, gemm.m, gemm.n, rows),
    }[dataflow]
    return -(-down // rows) * -(-along // cols) * (streamed + preload + rows + cols - 2)


def designs() -> list[dict[str, np.ndarray]]:
    """49,152 machines as chunks of axes."""
    index = np.arange(SIDE * SIDE * len(DATAFLOWS))
    axes = {"rows": index // SIDE % SIDE + 1, "cols": index % SIDE + 1, "dataflow": index // SIDE**2}
    starts = range(0, index.size, CHUNK)
    return [{name: values[start : start + CHUNK] for name, values in axes.items()} for start in starts]


def check(workload: Workload, base: HardwareProfile) -> None:
    """Raise where a sample of the vectorized cycles is wrong: what is timed must be right."""
    draw = random.Random(0)
    chunks = designs()
    for chunk in draw.choices(chunks, k=12):
        place, gemm = draw.randrange(len(chunk["rows"])), draw.choice(workload.gemms)
        rows, cols, code = (int(chunk[name][place]) for name in ("rows", "cols", "dataflow"))
        machines = Machines.vary(base, chunk)
        shape = {"rows": machines.rows, "cols": machines.cols, "dataflow": machines.dataflow}
        found = gemm_cycles(gemm.m, gemm.n, gemm.k, **shape, convention="exact")[place, 0]
        if found != plain_cycles(gemm, rows, cols, DATAFLOWS[code]):
            raise FailedError(f"the vectorized model is wrong: {gemm} on {rows}x{cols} {DATAFLOWS[code]}: {found}")


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median seconds of so many runs, after one unseen."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sweep(workload: Workload, base: HardwareProfile, energy: EnergyTable | None) -> Callable[[], None]:
    """Every design x every GEMM: compute cycles alone, or with a table cycles, stalls, traffic and energy."""
    gemms, chunks = gemm_arrays(workload), designs()

    def run() -> None:
        for chunk in chunks:
            machines = Machines.vary(base, chunk)
            if energy is not None:
                price_gemms(gemms, machines, convention="exact", energy=energy)
            else:
                shape = {"rows": machines.rows, "cols": machines.cols, "dataflow": machines.dataflow}
                gemm_cycles(gemms.m, gemms.n, gemms.k, **shape, convention="exact")

    return run


def once(subject: Subject, base: HardwareProfile, energy: EnergyTable) -> Callable[[], None]:
    """What the cost callback does before the first batch of a run."""

    def run() -> None:
        workload = trace(
            subject.net, subject.images.shape[1:], batch_size=len(subject.images), grad_input_form="col2im"
        )
        report = training_step_cost(workload, base, convention="exact", energy=energy)
        with tempfile.TemporaryDirectory() as folder:
            save_cost_figure(Path(folder) / "cost.png", {base.name: report}, step_memory(workload.buffers))

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_intermixed_args(arguments)
    try:
        cfg = config(options.overrides)
        subject = build(options.quant, options.overrides, batch_size=options.batch)
        base = instantiate(next(iter(cfg.hw.values())), _convert_="all")
        energy = instantiate(cfg.energy, _convert_="all")
        shape = subject.images.shape[1:]
        workload = trace(subject.net, shape, batch_size=options.batch, grad_input_form="col2im")
        check(workload, base)
    except UserError as error:
        return failed(error)
    count = sum(len(chunk["rows"]) for chunk in designs())
    title = f"{' '.join(options.overrides)} quant={options.quant}, batch {options.batch}: {len(workload.gemms)} GEMMs"
    table = Table("what", "seconds", "GEMMs priced a second", title=title, caption=describe(machine()))
    for label, table_of in (("cycles", None), ("with stalls and energy", energy)):
        spent = seconds(sweep(workload, base, table_of), options.rounds)
        rate = count * len(workload.gemms) / spent
        table.add_row(f"{count:,} machines: {label}", f"{spent:.3f}", f"{rate:,.0f}")
    step = seconds(subject.step, options.rounds)
    priced = seconds(once(subject, base, energy), options.rounds)
    table.add_row("a run, once: trace, price, picture", f"{priced:.3f}", "")
    Console(markup=False).print(table)
    share = priced / (step * (EPOCH // options.batch))
    Console(markup=False).print(
        f"pricing / an epoch of {EPOCH:,} images: {share:.2%}; no hook runs in a training step ({step:.3f} s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
