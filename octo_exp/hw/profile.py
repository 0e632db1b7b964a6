"""A machine as the cost model sees it: array, vector unit, clock, memories, and where each number is from."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import check_number
from octo_exp.hw.cycles import ARRAY_LIMIT, CHOICES
from octo_exp.hw.fields import check_name, checked_sources, named_fields

# Read by `check_field`: how the number in a field is checked, and between which bounds every machine lies. A field that
# carries one of them describes the machine and therefore needs an entry in `sources`.
_COUNT: dict[str, Any] = {"whole": True, "low": 1, "high": ARRAY_LIMIT}
# A kilohertz to a terahertz.
_FREQUENCY: dict[str, Any] = {"whole": False, "low": 1e-3, "high": 1e6}
# A byte in each half, to a pebibyte.
MEMORY: dict[str, Any] = {"whole": False, "low": 2**-9, "high": 2**40}
_BANDWIDTH: dict[str, Any] = {"whole": False, "low": 1e-9, "high": 1e9}
_LANES: dict[str, Any] = {"whole": True, "optional": True, "low": 1, "high": 2**20}
# A multiplication in a million cycles is slower than any routine for it.
_RATE: dict[str, Any] = {"whole": False, "optional": True, "low": 1e-6, "high": 1}
_QUOTED: dict[str, Any] = {"whole": False, "optional": True, "low": 1e-9, "high": 1e9}


@named_fields("hardware profile")
@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """One accelerator.

    Attributes:
        name: letters, digits, `_`, `.` and `-`; it becomes a part of log keys.
        rows: processing elements (PEs, one int8 MAC a cycle each) down the array.
        cols: PEs along the array.
        dataflow: os | ws | is, output-, weight- or input-stationary; per_gemm: for each GEMM the one of fewest cycles.
        frequency_mhz: clock of the array.
        sram_ifmap_kib: on-chip memory of operand a.
        sram_filter_kib: on-chip memory of operand b.
        sram_ofmap_kib: on-chip memory of the result and its partial sums.
        dram_bytes_per_cycle: off-chip bandwidth per cycle of the array.
        vector_lanes: elements a cycle of the vector unit, which quantizes, activates, adds and updates, and multiplies
            the floats that the array cannot; None where the machine has none.
        bf16_macs_per_pe_cycle: MACs of 16-bit operands a PE does in a cycle, at most 1 (int8 has 1); None where the
            array multiplies none.
        fp32_macs_per_pe_cycle: the same for 32-bit operands.
        quoted_tops: peak int8 tera-operations a second as the maker states it (a MAC is two), or None.
        sources: for each of the fields above but the name (and a None), `source`, a text, and `status`: "verified" =
            read in that source, "assumed" = recalled, derived, inferred by a third party, or a design choice.
        notes: what the profile leaves out or approximates.

    Raises:
        UserError: a missing, unknown or unsourced field, or a number beyond what a machine can have.

    """

    name: str
    rows: int = field(metadata=_COUNT)
    cols: int = field(metadata=_COUNT)
    dataflow: str
    frequency_mhz: float = field(metadata=_FREQUENCY)
    sram_ifmap_kib: float = field(metadata=MEMORY)
    sram_filter_kib: float = field(metadata=MEMORY)
    sram_ofmap_kib: float = field(metadata=MEMORY)
    dram_bytes_per_cycle: float = field(metadata=_BANDWIDTH)
    vector_lanes: int | None = field(metadata=_LANES)
    bf16_macs_per_pe_cycle: float | None = field(metadata=_RATE)
    fp32_macs_per_pe_cycle: float | None = field(metadata=_RATE)
    quoted_tops: float | None = field(metadata=_QUOTED)
    # A mapping has no hash; two profiles that differ in it are still unequal.
    sources: Mapping[str, Mapping[str, str]] = field(hash=False)
    notes: str

    def __post_init__(self) -> None:
        title = f"hardware profile {self.name!r}"
        check_name(title, self.name)
        if self.dataflow not in CHOICES:
            raise UserError(f"{title}: dataflow must be one of {', '.join(CHOICES)}, got {self.dataflow!r}")
        if not isinstance(self.notes, str):
            raise UserError(f"{title}: notes must be a text, got {self.notes!r}")
        described = ["dataflow"]
        for item in dataclasses.fields(self):
            if "whole" not in item.metadata:
                continue
            value = getattr(self, item.name)
            if value is None and item.metadata.get("optional"):
                continue
            check_field(title, item.name, value)
            described.append(item.name)
        object.__setattr__(self, "sources", checked_sources(title, self.sources, described))

    @property
    def processing_elements(self) -> int:
        """PEs of the array."""
        return self.rows * self.cols

    @property
    def sram_kib(self) -> float:
        """On-chip memory of all three operands."""
        return self.sram_ifmap_kib + self.sram_filter_kib + self.sram_ofmap_kib

    @property
    def peak_tops(self) -> float:
        """Peak int8 tera-operations a second of the modelled array: 2 * rows * cols * frequency."""
        return 2 * self.rows * self.cols * self.frequency_mhz * 1e6 / 1e12


def check_field(title: str, name: str, value: object) -> None:
    """Raise `UserError` unless a machine can have this number in the field of that name."""
    rule = number_rule(name)
    check_number(title, name, value, whole=rule["whole"], low=rule["low"], high=rule["high"])


@functools.cache
def number_rule(name: str) -> Mapping[str, Any]:
    """How the number in a field is checked: `whole`, `low` and `high`, and `optional` where it may be None."""
    return next(item.metadata for item in dataclasses.fields(HardwareProfile) if item.name == name)
