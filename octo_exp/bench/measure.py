"""Fair timing: the subjects take turns in one process, and what is reported are ratios of what stood side by side."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from octo_exp.base.progress import with_progress

# Between subjects whose worker threads spin on for a while.
_REST_S = 0.02


def alternate(steps: Mapping[str, Callable[[], object]], *, warmup: int, rounds: int) -> dict[str, list[float]]:
    """Run every step `warmup` times unseen, then `rounds` times in turn -> milliseconds of each, in order of rounds."""
    for _ in range(warmup):
        for step in steps.values():
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in with_progress(range(rounds), "measuring"):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            _synchronize()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def in_turns(steps: Mapping[str, Callable[[], object]], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Return milliseconds of a call by name, a mean of `calls` a round.

    Worker threads spin for a while after a call, onnxruntime's and OpenMP's: a subject's turn begins when the others'
    sleep, with a call that is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in with_progress(range(rounds), "measuring"):
        for name, step in steps.items():
            time.sleep(_REST_S)
            step()
            start = time.perf_counter()
            for _ in range(calls):
                step()
            times[name].append((time.perf_counter() - start) * 1e3 / calls)
    return times


def cpu_seconds(step: Callable[[], object], *, repeats: int) -> float:
    """Return the process's CPU seconds a step, all threads together, mean of `repeats`."""
    start = time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - start) / repeats


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pairwise_ratio(times: Mapping[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Return median(over) / median(under), and the 10th and 90th percentile of the ratios within a round."""
    ratios = sorted(a / b for a, b in zip(times[over], times[under], strict=True))
    middle = statistics.median(times[over]) / statistics.median(times[under])
    return {"ratio": middle, "p10": ratios[len(ratios) // 10], "p90": ratios[-1 - len(ratios) // 10]}


def machine() -> dict[str, Any]:
    """Return what a timing depends on: processor, its int8 instructions, threads, versions."""
    name, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        name, flags = facts.get("model name", name), facts.get("flags", "")
    return {
        "cpu": name,
        "int8": [flag for flag in ("avx512_vnni", "avx_vnni", "amx_int8") if flag in flags.split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }


def describe(facts: Mapping[str, Any]) -> str:
    """Return one line about the machine."""
    where = facts["gpu"] or f"{facts['cpu']} ({', '.join(facts['int8']) or 'no int8 instructions'})"
    return f"{where}, {facts['threads']} threads, torch {facts['torch']}, Python {facts['python']}"
