"""Energy = counts x table: MACs by operand width, bytes through on-chip memories, bytes off chip, vector operations.

Not counted: registers and wires between PEs, the on-chip memories of the vector unit, leakage, the clock, control. A
table's numbers say where they are from.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import check_number
from octo_exp.hw.fields import check_name, checked_sources, named_fields
from octo_exp.hw.profile import MEMORY
from octo_exp.workload import WIDTHS

FloatArray = NDArray[np.float64]
_NUMBERS = (
    "int8_mac_pj",
    "bf16_mac_pj",
    "fp32_mac_pj",
    "vector_op_pj",
    "dram_read_pj_per_byte",
    "dram_write_pj_per_byte",
)
_OPTIONAL = ("bf16_mac_pj", "fp32_mac_pj")
# In picojoules: from far below what physics lets a bit cost, to a millijoule an event.
_BOUNDS = {"low": 1e-12, "high": 1e9}
_SRAM_KEYS = ("kib", "read_pj_per_byte", "write_pj_per_byte")


@named_fields("energy table")
@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTable:
    """What one event costs, in picojoules.

    Attributes:
        name: letters, digits, `_`, `.` and `-`.
        int8_mac_pj: one multiplication of 8-bit operands and its 32-bit addition.
        bf16_mac_pj: the same for 16-bit floats; None where the source has none.
        fp32_mac_pj: the same for 32-bit floats.
        vector_op_pj: one operation of the vector unit on a 32-bit element.
        sram: rows {kib, read_pj_per_byte, write_pj_per_byte}, by rising capacity; between two rows the energy is linear
            in the logarithm of the capacity, beyond the ends it is that of the end.
        dram_read_pj_per_byte: a byte from off-chip memory.
        dram_write_pj_per_byte: a byte to it.
        sources: for each number that is not None, `source` and `status`, as in a hardware profile.
        notes: what the table leaves out.

    Raises:
        UserError: a missing, unknown or unsourced field, or a number beyond 1e-12..1e9 pJ.

    """

    name: str
    int8_mac_pj: float
    bf16_mac_pj: float | None
    fp32_mac_pj: float | None
    vector_op_pj: float
    sram: Sequence[Mapping[str, float]] = field(hash=False)
    dram_read_pj_per_byte: float
    dram_write_pj_per_byte: float
    sources: Mapping[str, Mapping[str, str]] = field(hash=False)
    notes: str

    def __post_init__(self) -> None:
        title = f"energy table {self.name!r}"
        check_name(title, self.name)
        described = ["sram"]
        for name in _NUMBERS:
            if name in _OPTIONAL and getattr(self, name) is None:
                continue
            check_number(title, name, getattr(self, name), whole=False, **_BOUNDS)
            described.append(name)
        object.__setattr__(self, "sram", _checked_rows(title, self.sram))
        object.__setattr__(self, "sources", checked_sources(title, self.sources, described))

    def mac_pj(self, width: str) -> float | None:
        """Energy of a MAC of int8, bf16 or fp32 operands; None where the table has none."""
        energy: float | None = getattr(self, f"{width}_mac_pj")
        return energy

    def mac_pj_by_width(self) -> FloatArray:
        """Energies in the order of WIDTHS, NaN where the table has none."""
        return np.array([np.nan if self.mac_pj(width) is None else self.mac_pj(width) for width in WIDTHS], np.float64)

    def sram_pj_per_byte(self, kib: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Energy of reading and of writing a byte of an on-chip memory of so many KiB; of the argument's shape."""
        columns = [np.array([row[key] for row in self.sram], np.float64) for key in _SRAM_KEYS]
        place = np.log2(np.asarray(kib, np.float64))
        known, read, write = np.log2(columns[0]), columns[1], columns[2]
        return np.asarray(np.interp(place, known, read)), np.asarray(np.interp(place, known, write))


def _checked_rows(title: str, rows: Any) -> tuple[dict[str, float], ...]:
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise UserError(f"{title}: sram must be a list of rows {{{', '.join(_SRAM_KEYS)}}}, got {rows!r}")
    for row in rows:
        if not isinstance(row, Mapping) or set(row) != set(_SRAM_KEYS):
            raise UserError(f"{title}: a row of sram must be {{{', '.join(_SRAM_KEYS)}}}, got {row!r}")
        for key in _SRAM_KEYS:
            bounds = {"low": MEMORY["low"], "high": MEMORY["high"]} if key == "kib" else _BOUNDS
            check_number(title, f"sram.{key}", row[key], whole=False, **bounds)
    sizes = [row["kib"] for row in rows]
    if any(small >= large for small, large in itertools.pairwise(sizes)):
        raise UserError(f"{title}: the rows of sram must come by rising capacity, got {sizes} KiB")
    return tuple({key: float(row[key]) for key in _SRAM_KEYS} for row in rows)
