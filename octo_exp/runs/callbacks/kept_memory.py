"""Memory of a training step: what autograd keeps for the backward pass, by layer, and the peak of process or device."""

import contextlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from octo_exp.base.files import write_csv
from octo_exp.runs.lit import network_of

MIB = 2**20


class SavedTensors:
    """Counts the bytes that autograd saves while it is open, by the module that was running.

    A storage counts once, to the module that saved it first; parameters and buffers count nothing, for they are there
    anyway. Use as a context around a forward pass.
    """

    def __init__(self, net: nn.Module) -> None:
        self.bytes_by_layer: dict[str, int] = defaultdict(int)
        self._net = net
        self._stack: list[str] = ["(loss)"]
        self._seen: set[tuple[torch.device, int]] = set()
        self._alive: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "SavedTensors":
        owned = [*self._net.parameters(), *self._net.buffers()]
        self._seen = {(t.device, t.untyped_storage().data_ptr()) for t in owned}
        for name, module in self._net.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._push(name)))
            self._handles.append(module.register_forward_hook(self._pop, always_call=True))
        self._context = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles, self._alive = [], []

    def _push(self, name: str) -> Any:
        return lambda module, inputs: self._stack.append(name or "(net)")

    def _pop(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()

    def _pack(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        key = (t.device, storage.data_ptr())
        if key not in self._seen and storage.nbytes() > 0:
            self._seen.add(key)
            self.bytes_by_layer[self._stack[-1]] += storage.nbytes()
            # Kept alive while counting: a freed storage's address could be given out again.
            self._alive.append(t.detach())
        return t


class MemoryCallback(Callback):
    """Measures one training step (the second batch, or the first of a one-batch epoch) and writes memory.csv.

    Results: memory/saved_for_backward_mib (MiB kept for the backward pass by that step), memory/peak_mib (the process's
    largest resident set on a CPU, the largest allocation on a CUDA device, from the start of the run to its end).
    """

    def __init__(self) -> None:
        self.saved: dict[str, int] = {}
        self._started = False
        self._peak_before = 0.0
        self._context: SavedTensors | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin the peak anew before the first stage."""
        if not self._started:
            reset_peak()
            self._started = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open the count."""
        wanted = min(1, int(trainer.num_training_batches) - 1)
        if not self.saved and batch_idx == wanted:
            self._context = SavedTensors(network_of(pl_module, "memory")).__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Close the count: everything the backward pass needs has been saved."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self.saved = dict(self._context.bytes_by_layer)
            self._context = None
            self._write(Path(trainer.default_root_dir) / "memory.csv")

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far: bytes by layer, and the peak in MiB."""
        return {"saved": self.saved, "peak": max(self._peak_before, peak_mib())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an earlier process measured: the step is the same, the peak the larger of both."""
        self.saved = {str(name): int(size) for name, size in state_dict["saved"].items()}
        self._peak_before = float(state_dict["peak"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the count of a step that broke off: the next job of the process would go on with its hooks."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    def _write(self, path: Path) -> None:
        rows = [("layer", "saved_for_backward_bytes"), *self.saved.items()]
        write_csv(path, rows, remedy="choose another output folder")

    @property
    def results(self) -> dict[str, float | None]:
        """Return the totals in MiB."""
        total = sum(self.saved.values()) / MIB if self.saved else None
        return {"memory/saved_for_backward_mib": total, "memory/peak_mib": max(self._peak_before, peak_mib()) or None}


def reset_peak() -> None:
    """Begin the peak anew, where the system can: each job of a sweep in one process has its own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Return the peak since the reset: of the CUDA device if one was used, else the process's resident set.

    0 where the system does not tell (Windows).
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / MIB
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    # Where there is no /proc, the largest since the process began; macOS counts bytes, others KiB.
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
