"""A machine as the cost model sees it: array, vector unit, clock, memories, and where each number is from."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octo_exp.errors import UserError
from octo_exp.hw.cycles import CHOICES
from octo_exp.hw.fields import check_name, check_number, checked_sources, named_fields

# Read by `HardwareProfile.__post_init__`: how the number in a field is checked. A field that carries one of them
# describes the machine and therefore needs an entry in `sources`.
_COUNT: dict[str, Any] = {"whole": True}
_QUANTITY: dict[str, Any] = {"whole": False}
_OPTIONAL_COUNT: dict[str, Any] = {"whole": True, "optional": True}
_OPTIONAL_QUANTITY: dict[str, Any] = {"whole": False, "optional": True}
_RATE: dict[str, Any] = {**_OPTIONAL_QUANTITY, "limit": 1}


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
        UserError: a missing, unknown, non-positive or unsourced field.

    """

    name: str
    rows: int = field(metadata=_COUNT)
    cols: int = field(metadata=_COUNT)
    dataflow: str
    frequency_mhz: float = field(metadata=_QUANTITY)
    sram_ifmap_kib: float = field(metadata=_QUANTITY)
    sram_filter_kib: float = field(metadata=_QUANTITY)
    sram_ofmap_kib: float = field(metadata=_QUANTITY)
    dram_bytes_per_cycle: float = field(metadata=_QUANTITY)
    vector_lanes: int | None = field(metadata=_OPTIONAL_COUNT)
    bf16_macs_per_pe_cycle: float | None = field(metadata=_RATE)
    fp32_macs_per_pe_cycle: float | None = field(metadata=_RATE)
    quoted_tops: float | None = field(metadata=_OPTIONAL_QUANTITY)
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
            check_number(title, item.name, value, whole=item.metadata["whole"])
            if value > item.metadata.get("limit", value):
                raise UserError(f"{title}: {item.name} must be at most {item.metadata['limit']}, got {value!r}")
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
