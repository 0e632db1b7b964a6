"""A machine as the cost model sees it: one systolic array, its clock, its memories, and where each number is from."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octo_exp.errors import UserError
from octo_exp.hw.cycles import DATAFLOWS
from octo_exp.hw.fields import check_number, named_fields

STATUSES = ("verified", "assumed")

# Read by `HardwareProfile.__post_init__`: how the number in a field is checked. A field that carries one of them
# describes the machine and therefore needs an entry in `sources`.
_COUNT: dict[str, Any] = {"whole": True}
_QUANTITY: dict[str, Any] = {"whole": False}
_OPTIONAL_QUANTITY: dict[str, Any] = {"whole": False, "optional": True}


@named_fields("hardware profile")
@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """One accelerator.

    Attributes:
        name: letters, digits, `_`, `.` and `-`; it becomes a part of log keys.
        rows: processing elements (PEs, one int8 MAC a cycle each) down the array.
        cols: PEs along the array.
        dataflow: os | ws | is, output-, weight- or input-stationary.
        frequency_mhz: clock of the array.
        sram_ifmap_kib: on-chip memory of operand a.
        sram_filter_kib: on-chip memory of operand b.
        sram_ofmap_kib: on-chip memory of the result and its partial sums.
        dram_bytes_per_cycle: off-chip bandwidth per cycle of the array.
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
    quoted_tops: float | None = field(metadata=_OPTIONAL_QUANTITY)
    # A mapping has no hash; two profiles that differ in it are still unequal.
    sources: Mapping[str, Mapping[str, str]] = field(hash=False)
    notes: str

    def __post_init__(self) -> None:
        title = f"hardware profile {self.name!r}"
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.-]+", self.name):
            raise UserError(f"{title}: name must be made of letters, digits, '_', '.' and '-'")
        if self.dataflow not in DATAFLOWS:
            raise UserError(f"{title}: dataflow must be one of {', '.join(DATAFLOWS)}, got {self.dataflow!r}")
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
            described.append(item.name)
        object.__setattr__(self, "sources", _checked_sources(title, self.sources, described))

    @property
    def peak_tops(self) -> float:
        """Peak int8 tera-operations a second of the modelled array: 2 * rows * cols * frequency."""
        return 2 * self.rows * self.cols * self.frequency_mhz * 1e6 / 1e12


def _checked_sources(
    title: str, sources: Mapping[str, Mapping[str, str]], described: list[str]
) -> dict[str, dict[str, str]]:
    """Plain copy of `sources`, one entry for each described field and none for another."""
    if not isinstance(sources, Mapping):
        raise UserError(f"{title}: sources must map field names to {{source, status}}, got {sources!r}")
    for name in sources:
        if name not in described:
            raise UserError(f"{title}: sources names {name!r}, which is no number of this profile")
    for name in described:
        entry = sources.get(name)
        if not isinstance(entry, Mapping) or set(entry) != {"source", "status"} or not entry["source"]:
            raise UserError(f"{title}: sources.{name} must be {{source: <text>, status: {' | '.join(STATUSES)}}}")
        if entry["status"] not in STATUSES:
            raise UserError(f"{title}: sources.{name}.status must be {' or '.join(STATUSES)}, got {entry['status']!r}")
    return {name: {"source": str(sources[name]["source"]), "status": sources[name]["status"]} for name in described}
