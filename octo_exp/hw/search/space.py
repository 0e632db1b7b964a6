"""A space of machines: named axes around a base machine, limits on size and memory, and points as whole numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import check_number
from octo_exp.hw.cycles import CHOICES
from octo_exp.hw.machines import Machines
from octo_exp.hw.profile import HardwareProfile
from octo_exp.hw.search.axes import CATEGORICAL, axis_values

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Quantity that can be limited -> the axes it depends on.
LIMITED = {
    "processing_elements": ("rows", "cols"),
    "sram_kib": ("sram_ifmap_kib", "sram_filter_kib", "sram_ofmap_kib"),
}
_MOST_POINTS = 2**62
# No limit needs to go further: it is more than a machine can have.
_LARGEST = 2**42
_MOST_COMBINATIONS = 2**24
_CHUNK = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Bounds of a quantity, both included."""

    low: float
    high: float

    def excess(self, values: NDArray[Any]) -> FloatArray:
        """How far values lie outside, relative to the bound; exactly 0 inside."""
        below = np.maximum(self.low - values, 0) / max(self.low, 1)
        return np.asarray(below + np.maximum(values - self.high, 0) / self.high, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Axes (by position) that one limit ties together; `allowed` holds the ranks of their feasible combinations."""

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    allowed: IntArray | None

    def __len__(self) -> int:
        return math.prod(self.sizes) if self.allowed is None else len(self.allowed)


class Space:
    """Machines like `base` but for the fields named in `axes`, within limits.

    A design is a row of digits, one an axis: which of the axis's values it has. A *point* numbers the feasible designs
    alone, 0..len-1, in the order of nested loops over the axes (limited axes stand together); decoding is by mixed
    radix over blocks of axes that share a limit, so that nothing of the size of the space is ever held.

    Args:
        base: the machine that the designs differ from.
        axes: field of a profile -> list of values, {from, to[, step]} or {powers_of_two: [low, high]}.
        constraints: processing_elements, sram_kib -> None, an exact number, or {min, max} of which one may be absent.

    Raises:
        UserError: an empty space, an unknown field, a value that no machine has, limits that no design meets.

    """

    def __init__(self, base: HardwareProfile, axes: Mapping[str, Any], constraints: Mapping[str, Any]) -> None:
        if not axes:
            raise UserError("the space is empty: give at least one axis, e.g. 'space={rows: [8, 16, 32]}'")
        self.base = base
        self.axes: dict[str, NDArray[Any]] = {name: axis_values(name, given) for name, given in axes.items()}
        self.limits = {name: limit for name, given in constraints.items() if (limit := _limit(name, given)) is not None}
        self._blocks = tuple(self._make_blocks())
        if self.size >= _MOST_POINTS:
            raise UserError(f"the space has {self.size:.1e} designs: give its axes fewer values")
        if not len(self):
            wanted = ", ".join(f"{name} in {limit.low:g}..{limit.high:g}" for name, limit in self.limits.items())
            raise UserError(f"none of the space's {self.size:,} designs has {wanted}: widen an axis or a constraint")

    def __len__(self) -> int:
        return math.prod(len(block) for block in self._blocks)

    @property
    def size(self) -> int:
        """Number of all designs, infeasible ones included."""
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values of each axis."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def is_ordered(self) -> tuple[bool, ...]:
        """For each axis whether neighbouring digits are neighbouring values."""
        return tuple(name not in CATEGORICAL for name in self.axes)

    def decode(self, points: IntArray) -> IntArray:
        """Digits [P, A] of points [P]."""
        digits = np.empty((len(points), len(self.axes)), np.int64)
        for block in reversed(self._blocks):
            points, rank = np.divmod(points, len(block))
            if block.allowed is not None:
                rank = block.allowed[rank]
            for axis, size in zip(reversed(block.axes), reversed(block.sizes), strict=True):
                rank, digits[:, axis] = np.divmod(rank, size)
        return digits

    def encode(self, digits: IntArray) -> IntArray:
        """Points [P] of digits [P, A], -1 where the design is not feasible."""
        points = np.zeros(len(digits), np.int64)
        feasible = np.ones(len(digits), np.bool_)
        for block in self._blocks:
            rank = np.zeros(len(digits), np.int64)
            for axis, size in zip(block.axes, block.sizes, strict=True):
                rank = rank * size + digits[:, axis]
            if block.allowed is not None:
                place = np.minimum(np.searchsorted(block.allowed, rank), len(block) - 1)
                feasible &= block.allowed[place] == rank
                rank = place
            points = points * len(block) + rank
        return np.where(feasible, points, -1)

    def machines(self, digits: IntArray) -> Machines:
        """The designs of digits [P, A] as columns."""
        return Machines.vary(self.base, self.values(digits))

    def values(self, digits: IntArray) -> dict[str, NDArray[Any]]:
        """Axis -> values [P] of the designs; a dataflow is its index in CHOICES."""
        return {name: values[digits[:, axis]] for axis, (name, values) in enumerate(self.axes.items())}

    def excess(self, digits: IntArray) -> FloatArray:
        """How far designs [P, A] lie outside of the limits, summed; exactly 0 where feasible."""
        machines = self.machines(digits)
        total = np.zeros(len(digits))
        for name, limit in self.limits.items():
            total += limit.excess(getattr(machines, name)[:, 0])
        return total

    def columns(self, points: IntArray) -> dict[str, list[Any]]:
        """Axis -> values of the points, as they are written down: a dataflow by its name."""
        found = {name: values.tolist() for name, values in self.values(self.decode(points)).items()}
        return {name: [CHOICES[v] for v in column] if name in CATEGORICAL else column for name, column in found.items()}

    def profile(self, point: int, *, name: str) -> HardwareProfile:
        """The machine of one point; what a maker quotes of the base does not hold for it."""
        row: dict[str, Any] = {axis: column[0] for axis, column in self.columns(np.array([point])).items()}
        found = {"source": f"a point of a design space around {self.base.name}", "status": "assumed"}
        sources = {field: found if field in row else source for field, source in self.base.sources.items()}
        sources = {**sources, **dict.fromkeys(row, found)}
        sources.pop("quoted_tops", None)
        return replace(self.base, name=name, quoted_tops=None, sources=sources, **row)

    def _make_blocks(self) -> list[_Block]:
        names = list(self.axes)
        tied = {axis: name for name in self.limits for axis in LIMITED[name] if axis in self.axes}
        blocks: list[_Block] = []
        for limit in [name for name in self.limits if name not in tied.values()]:
            self._check_base(limit)
        for position, axis in enumerate(names):
            limit = tied.get(axis, "")
            if not limit:
                blocks.append(_Block(axes=(position,), sizes=(len(self.axes[axis]),), allowed=None))
            elif axis == next(name for name in names if tied.get(name) == limit):
                blocks.append(self._tied_block(limit))
        return blocks

    def _check_base(self, limited: str) -> None:
        """A limit on what no axis changes either holds for every design or for none."""
        value, limit = getattr(self.base, limited), self.limits[limited]
        if not limit.low <= value <= limit.high:
            raise UserError(
                f"constraints.{limited}: every design has the {value:g} of {self.base.name}, for none of "
                f"{', '.join(LIMITED[limited])} is an axis; add one, or leave the constraint out"
            )

    def _tied_block(self, limited: str) -> _Block:
        """Enumerate the combinations of the axes behind one limit, piece by piece, and keep the feasible ones."""
        axes = tuple(axis for axis, name in enumerate(self.axes) if name in LIMITED[limited])
        sizes = tuple(self.sizes[axis] for axis in axes)
        count = math.prod(sizes)
        if count > _MOST_COMBINATIONS:
            names = " x ".join(list(self.axes)[axis] for axis in axes)
            raise UserError(
                f"constraints.{limited}: {names} has {count:,} combinations, more than {_MOST_COMBINATIONS:,}; "
                "give an axis fewer values, e.g. with {from, to, step}"
            )
        everything = _Block(axes=axes, sizes=sizes, allowed=None)
        return replace(everything, allowed=np.concatenate(list(self._feasible(everything, limited))))

    def _feasible(self, block: _Block, limited: str) -> list[IntArray]:
        names, found = list(self.axes), []
        for start in range(0, len(block), _CHUNK):
            ranks = np.arange(start, min(start + _CHUNK, len(block)))
            rest, given = ranks, {}
            for axis, size in zip(reversed(block.axes), reversed(block.sizes), strict=True):
                rest, digit = np.divmod(rest, size)
                given[names[axis]] = self.axes[names[axis]][digit]
            values = getattr(Machines.vary(self.base, given), limited)[:, 0]
            found.append(ranks[self.limits[limited].excess(values) == 0])
        return found


def _limit(name: str, given: Any) -> Limit | None:
    """Read one constraint; None where it is switched off."""
    title = f"constraints.{name}"
    if name not in LIMITED:
        raise UserError(f"unknown constraint {name!r}: choose among {', '.join(LIMITED)}")
    if given is None:
        return None
    bounds = given if isinstance(given, Mapping) else {"min": given, "max": given}
    if not bounds or set(bounds) - {"min", "max"}:
        raise UserError(f"{title} must be a number or {{min: .., max: ..}}, got {given!r}")
    for key, value in bounds.items():
        check_number(
            "constraints", f"{name}.{key}" if isinstance(given, Mapping) else name, value, whole=False, high=_LARGEST
        )
    limit = Limit(low=bounds.get("min", 0), high=bounds.get("max", math.inf))
    if limit.low > limit.high:
        raise UserError(f"{title}: min {limit.low:g} is above max {limit.high:g}")
    return limit
