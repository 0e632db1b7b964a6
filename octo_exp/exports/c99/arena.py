"""Where tensors lie in one block of memory, planned from their lifetimes: greedy, the largest first, best fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octo_exp.exports.c99.titles import over_of, scratch_bytes_of, sizes_of
from octo_exp.graph.operations import Step, last_reads, steps_of
from octo_exp.graph.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """What must stay as it is from step `first` on; sizes_bytes: in that step, in the next, ... to the last."""

    first: int
    sizes_bytes: tuple[int, ...]

    def steps_with(self, other: "Buffer") -> range:
        """Return the steps in which both live."""
        ends = (self.first + len(self.sizes_bytes), other.first + len(other.sizes_bytes))
        return range(max(self.first, other.first), min(ends))

    def largest_bytes(self, steps: range) -> int:
        """Return the largest size in some of its steps."""
        return max(self.sizes_bytes[i - self.first] for i in steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """A graph's memory beside image and logits.

    offsets: first byte of what each step but the last makes, by its name. scratch: that of its scratch, if it has any.
    peak: the step in which the most bytes live.
    """

    size_bytes: int
    offsets: dict[str, int]
    scratch: dict[str, int]
    peak: Step


def arena_of(spec: ModelSpec) -> Arena:
    """Return the arena of a graph. A step writes over a tensor that nobody reads later, where it may."""
    steps = steps_of(spec)
    roots, kept = _tensors(steps, sizes_of(spec))
    needed = [scratch_bytes_of(step) for step in steps]
    own = {steps[k].name: Buffer(first=k, sizes_bytes=(count,)) for k, count in enumerate(needed) if count}
    buffers = [*kept.values(), *own.values()]
    places = place(buffers)
    at, live = dict(zip(kept, places, strict=False)), live_bytes(buffers)
    return Arena(
        size_bytes=max(offset + max(b.sizes_bytes) for b, offset in zip(buffers, places, strict=True)),
        offsets={tensor: at[root] for tensor, root in roots.items()},
        scratch=dict(zip(own, places[len(kept) :], strict=True)),
        peak=steps[live.index(max(live))],
    )


def live_bytes(buffers: Sequence[Buffer]) -> list[int]:
    """Return the bytes that live in each step: no arena is smaller than the largest of them."""
    live = [0] * max(b.first + len(b.sizes_bytes) for b in buffers)
    for b in buffers:
        for i, size_bytes in enumerate(b.sizes_bytes, b.first):
            live[i] += size_bytes
    return live


def _tensors(steps: Sequence[Step], sizes: Mapping[str, int]) -> tuple[dict[str, str], dict[str, Buffer]]:
    """(tensor -> the tensor in whose place it lies, that tensor -> the buffer of all that lie there)."""
    last = last_reads(steps)
    roots: dict[str, str] = {}
    kept: dict[str, Buffer] = {}
    # Image and logits are the caller's.
    for i, step in enumerate(steps[:-1]):
        made = step.name
        # A tensor that is read later stays.
        free = [t for t in over_of(step) if t in roots and last[t] == i and sizes[t] >= sizes[made]]
        roots[made] = root = roots[free[0]] if free else made
        # In the step that writes over a tensor both live: the old one, which is not smaller, counts.
        first, live = (kept[root].first, kept[root].sizes_bytes) if free else (i, (sizes[made],))
        kept[root] = Buffer(first=first, sizes_bytes=live + (sizes[made],) * (last[made] - i))
    return roots, kept


def place(buffers: Sequence[Buffer]) -> list[int]:
    """Return the first byte of each buffer: no two overlap in a step in which both live.

    The largest first, each where it fits best between those that stand: with the least room left above it.
    """
    offsets: dict[int, int] = {}
    for k in sorted(range(len(buffers)), key=lambda k: -max(buffers[k].sizes_bytes)):
        # Between these two, exclusive, it would overlap.
        taken = []
        for j, offset in offsets.items():
            steps = buffers[k].steps_with(buffers[j])
            if steps:
                taken.append((offset - buffers[k].largest_bytes(steps), offset + buffers[j].largest_bytes(steps)))
        offsets[k] = _best_fit(taken)
    return [offsets[k] for k in range(len(buffers))]


def _best_fit(taken: Sequence[tuple[int, int]]) -> int:
    """Open intervals of offsets that will not do -> the offset with the least room to the next of them."""
    starts = {0, *(end for _, end in taken)}
    fits = [start for start in starts if not any(low < start < end for low, end in taken)]
    return min(
        fits, key=lambda start: (min((low - start for low, _ in taken if low >= start), default=math.inf), start)
    )
