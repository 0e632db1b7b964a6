"""Block sizes of the Triton kernels: timed once for each (kernel, shape, device name), then remembered in a file.

A candidate changes how the work is cut, never an integer of the result. Without a CUDA device (Triton's interpreter)
the first candidate is taken and nothing is timed or written.
"""

import functools
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from octo_exp.base.caches import add_json, cache_folder, read_json

RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A program's tile: m x n outputs, k products at a time; its warps and stages; the parts that a sum is split in."""

    m: int
    n: int
    k: int
    warps: int
    stages: int
    parts: int = 1

    def launch_options(self) -> dict[str, int | bool]:
        """Return Triton's own options of a launch; a product and a sum are rounded twice, as everywhere else."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}


Launch = Callable[[Blocks], object]
# Two operands' tiles take at most 48 KiB in all stages: every device that multiplies int8 has that much shared memory.
TILES = (
    Blocks(m=64, n=64, k=64, warps=4, stages=4),
    Blocks(m=128, n=64, k=64, warps=4, stages=3),
    Blocks(m=128, n=128, k=64, warps=8, stages=3),
    Blocks(m=64, n=32, k=64, warps=4, stages=4),
    Blocks(m=32, n=64, k=128, warps=4, stages=3),
)


def milliseconds(launch: Callable[[], object]) -> float:
    """Median time of a launch on the current CUDA device, the first (it compiles) left out."""
    launch()
    times = []
    for _ in range(RUNS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        launch()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


class BlockCache:
    """Choices in a JSON file, "device|kernel|shape" -> the fields of `Blocks`; `timer` gives a launch's time."""

    def __init__(self, path: Path, timer: Callable[[Callable[[], object]], float] = milliseconds) -> None:
        self.path, self._timer = path, timer
        self._chosen: dict[tuple[str, str, tuple[int, ...]], Blocks] = {}

    def choose(
        self, kernel: str, shape: tuple[int, ...], device_name: str, candidates: Sequence[Blocks], launch: Launch
    ) -> Blocks:
        """Return the fastest candidate; it is timed where neither this process nor the file knows it."""
        key = (device_name, kernel, shape)
        if key not in self._chosen:
            text = f"{device_name}|{kernel}|{'x'.join(map(str, shape))}"
            known = {json.dumps(astuple(c)): c for c in candidates}
            # A choice that is no candidate any more is timed again.
            found = known.get(json.dumps(read_json(self.path).get(text)))
            if found is None:
                found = min(candidates, key=lambda blocks: self._timer(functools.partial(launch, blocks)))
                add_json(self.path, {text: astuple(found)})
            self._chosen[key] = found
        return self._chosen[key]


@functools.cache
def _cache() -> BlockCache:
    return BlockCache(cache_folder() / "triton_blocks.json")


@functools.cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def choose(
    kernel: str, shape: tuple[int, ...], device: torch.device, launch: Launch, candidates: Sequence[Blocks] = TILES
) -> Blocks:
    """Return the blocks of a kernel for a shape; `launch(blocks)` runs it whole, any number of times."""
    if device.type != "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return candidates[0]
    return _cache().choose(kernel, shape, _device_name(device), candidates, launch)
