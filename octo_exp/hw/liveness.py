"""Peak memory of a training step, by liveness: the largest sum of the buffers that are needed at one time."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from octo_exp.workload import BUFFER_KINDS, Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Bytes of a training step.

    Attributes:
        peak_bytes: the largest sum of live buffers.
        event: the first event at which it is reached.
        peak_by_kind: kind -> bytes live at that event, all of BUFFER_KINDS.
        kept_bytes: what the forward pass keeps for the backward pass.
        kept_by_layer: layer -> bytes of it.
        live_bytes: bytes live at every event, the curve whose maximum the peak is.
        live_by_kind: kind -> such a curve.

    """

    peak_bytes: int
    event: int
    peak_by_kind: dict[str, int]
    kept_bytes: int
    kept_by_layer: dict[str, int]
    live_bytes: tuple[int, ...]
    live_by_kind: dict[str, tuple[int, ...]]


def step_memory(buffers: Sequence[Buffer]) -> MemoryReport:
    """Liveness of `buffers`: event e needs every buffer with first <= e <= last.

    A buffer is a tensor of the step's own data flow; an allocator's rounding and fragmentation, and the runtime's own
    memory, are not in it.
    """
    events = max((buffer.last for buffer in buffers), default=0) + 1
    # Python's own integers: no sum of them wraps.
    change = {kind: [0] * (events + 1) for kind in BUFFER_KINDS}
    kept: dict[str, int] = {}
    for buffer in buffers:
        change[buffer.kind][buffer.first] += buffer.bytes
        change[buffer.kind][buffer.last + 1] -= buffer.bytes
        if buffer.kept:
            kept[buffer.layer] = kept.get(buffer.layer, 0) + buffer.bytes
    curves = {kind: tuple(itertools.accumulate(steps[:-1])) for kind, steps in change.items()}
    live = tuple(sum(sizes) for sizes in zip(*curves.values(), strict=True))
    event = max(range(events), key=live.__getitem__)
    return MemoryReport(
        peak_bytes=live[event],
        event=event,
        peak_by_kind={kind: curve[event] for kind, curve in curves.items()},
        kept_bytes=sum(kept.values()),
        kept_by_layer=kept,
        live_bytes=live,
        live_by_kind=curves,
    )
