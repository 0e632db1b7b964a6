"""Many machines at once, as columns that broadcast against the GEMMs of a workload."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import shown
from octo_exp.hw.cycles import choice_codes
from octo_exp.hw.profile import HardwareProfile, number_rule

_WHOLE = ("rows", "cols")
_OPTIONAL = ("vector_lanes", "bf16_macs_per_pe_cycle", "fp32_macs_per_pe_cycle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """P machines; every column has shape [P, 1], so that with columns of L GEMMs it gives [P, L].

    The names and units are those of `HardwareProfile`; `dataflow` is an index into CHOICES, NaN stands for None, and a
    bandwidth may be infinite.
    """

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    dataflow: NDArray[np.int64]
    sram_ifmap_kib: NDArray[np.float64]
    sram_filter_kib: NDArray[np.float64]
    sram_ofmap_kib: NDArray[np.float64]
    dram_bytes_per_cycle: NDArray[np.float64]
    vector_lanes: NDArray[np.float64]
    bf16_macs_per_pe_cycle: NDArray[np.float64]
    fp32_macs_per_pe_cycle: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, profiles: Sequence[HardwareProfile]) -> Self:
        """Columns of the given profiles, in their order."""
        return cls(**{name: _column(name, [getattr(p, name) for p in profiles]) for name in field_names()})

    @classmethod
    def vary(cls, base: HardwareProfile, axes: Mapping[str, ArrayLike]) -> Self:
        """Machines like `base` but for the fields in `axes`, each an array [P]: machine i has the i-th value of each.

        Raises:
            UserError: a field that the model does not read, arrays of unlike length, or a value that no machine has.

        """
        lengths = {name: np.size(values) for name, values in axes.items()}
        for name in axes:
            if name not in field_names():
                raise UserError(f"a machine cannot vary in {name!r}: choose among {', '.join(field_names())}")
        if len(set(lengths.values())) > 1:
            raise UserError(f"the axes must be of one length, got {lengths}")
        count = next(iter(lengths.values()), 1)
        return cls(
            **{
                name: _column(name, axes[name])
                if name in axes
                else np.repeat(_column(name, [getattr(base, name)]), count, 0)
                for name in field_names()
            }
        )

    @property
    def processing_elements(self) -> NDArray[np.int64]:
        """PEs of each array, [P, 1]."""
        return self.rows * self.cols

    @property
    def sram_kib(self) -> NDArray[np.float64]:
        """On-chip memory of all three operands, [P, 1]."""
        return self.sram_ifmap_kib + self.sram_filter_kib + self.sram_ofmap_kib

    @property
    def lanes(self) -> NDArray[np.int64]:
        """Lanes of each vector unit, [P, 1]; 1 where there is none."""
        return np.where(np.isnan(self.vector_lanes), 1, self.vector_lanes).astype(np.int64)

    def half_bytes(self, operand: str) -> NDArray[np.int64]:
        """Whole bytes of the half of one of the memories, ifmap | filter | ofmap, [P, 1]."""
        halves: NDArray[np.float64] = np.floor(getattr(self, f"sram_{operand}_kib") * 512)
        return halves.astype(np.int64)

    def rate(self, width: NDArray[np.int64]) -> NDArray[np.float64]:
        """MACs that a PE does in a cycle, [P, L], for GEMMs of width 0 int8, 1 bf16, 2 fp32 [L]; NaN where none."""
        return np.where(width == 0, 1.0, np.where(width == 1, self.bf16_macs_per_pe_cycle, self.fp32_macs_per_pe_cycle))


@functools.cache
def field_names() -> tuple[str, ...]:
    """The fields of a profile that the model reads."""
    return tuple(item.name for item in fields(Machines))


def _column(name: str, values: ArrayLike) -> Any:
    if name == "dataflow":
        return choice_codes(values).reshape(-1, 1)
    array = np.asarray(values)
    rule = number_rule(name)
    if rule["whole"] and name not in _OPTIONAL and array.size and array.dtype.kind not in "iu":
        raise UserError(f"{name} must be a whole number, got {shown(array.ravel().tolist()[0])}")
    try:
        column = array.astype(np.float64).reshape(-1, 1)
    except OverflowError as error:
        raise UserError(f"{name} must be at most {rule['high']}, got {shown(max(array.flat))}") from error
    _check_bounds(name, column, rule["low"], rule["high"])
    return column.astype(np.int64) if name in _WHOLE else column


def _check_bounds(name: str, column: NDArray[np.float64], low: float, high: float) -> None:
    """Raise `UserError` where a machine cannot have a number; NaN stands for what it need not have."""
    if column.size and low <= column.min() and column.max() <= high:
        return
    missing = np.isnan(column) & (name in _OPTIONAL)
    unlimited = np.isinf(column) & (name == "dram_bytes_per_cycle") & (column > 0)
    wrong = ~((column >= low) & (column <= high)) & ~missing & ~unlimited
    if wrong.any():
        value = float(column[wrong][0])
        bound = f"at most {high:.16g}" if value > high else f"at least {low:g}" if value > 0 else "greater than zero"
        raise UserError(f"{name} must be {bound}, got {value!r}")
