"""Memory of one training step: what is kept for the backward pass, counted, and the peak, in a fresh process each.

`python -m octo_exp.bench.memory SUBJECT model=vgg11 data=cifar10` prints the growth of the resident set as JSON.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octo_exp.bench import subjects
from octo_exp.runs.callbacks.kept_memory import MIB, SavedTensors, peak_mib, reset_peak


def saved_mib(subject: subjects.Subject) -> float:
    """MiB that the subject's step keeps for its backward pass: what autograd saves, and what escapes it."""
    with SavedTensors(subject.net) as saved:
        loss = subject.loss()
    total = sum(saved.bytes_by_layer.values())
    total += sum(t.numel() * t.element_size() for t in escaped_tensors(loss, subject.net))
    return total / MIB


def escaped_tensors(loss: Tensor, net: nn.Module) -> list[Tensor]:
    """Tensors that outlive the forward pass past save_for_backward: on a node of the graph, or on a module.

    Parameters, buffers and scalars do not count.
    """
    owned = {id(t) for t in (*net.parameters(), *net.buffers())}
    holders = [vars(node) for node in _nodes(loss.grad_fn) if hasattr(node, "__dict__")]
    holders += [vars(module) for module in net.modules()]
    found: dict[int, Tensor] = {}
    for holder in holders:
        for value in _tensors(list(holder.values())):
            if id(value) not in owned and value.numel() > 1:
                found[value.untyped_storage().data_ptr()] = value
    return list(found.values())


def _nodes(root: Any) -> Iterator[Any]:
    seen, stack = set(), [root]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [following for following, _ in node.next_functions]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | set):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def growth_mib(subject: subjects.Subject) -> float:
    """MiB by which one step raises the peak of the resident set over what the process holds before it."""
    images, labels = subject.images, subject.labels
    # Libraries load and kernels compile on a batch of two.
    small = {"images": images[:2].clone(), "labels": labels[:2].clone()}
    subjects.replaced(subject, **small).step()
    subject.optimizer.zero_grad()
    gc.collect()
    reset_peak()
    before = resident_mib()
    subject.step()
    return peak_mib() - before


def resident_mib() -> float:
    """Return the process's resident set now (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS line")


def measure_growth(name: str, overrides: Sequence[str], *, batch_size: int, threads: int) -> float:
    """Return the median of three `growth_mib` of a subject, each in a process of its own."""
    command = [sys.executable, "-m", "octo_exp.bench.memory", name, *overrides]
    command += ["--batch", str(batch_size), "--threads", str(threads)]
    root = Path(__file__).resolve().parents[2]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True, cwd=root) for _ in range(3)]
    growth = [float(json.loads(run.stdout.splitlines()[-1])["growth_mib"]) for run in runs]
    return statistics.median(growth)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one subject in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(options.threads)
    subject = subjects.build(options.subject, options.overrides, batch_size=options.batch)
    sys.stdout.write(json.dumps({"subject": options.subject, "growth_mib": growth_mib(subject)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
