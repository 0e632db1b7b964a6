"""Machines, GEMMs, energy tables and prices for the tests of hw."""

import csv
from pathlib import Path
from typing import Any

from octo_exp.hw import EnergyTable, HardwareProfile, Machines, gemm_arrays, price_gemms
from octo_exp.hw.price import GemmPrices
from octo_exp.workload import Gemm, Workload

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "scalesim"
ROLE_OF = {"fwd": "output", "dgrad": "grad_input", "wgrad": "grad_weight"}
# The bytes of half a KiB: a memory of x / HALF_KIB KiB has a half of x bytes.
HALF_KIB = 512
MACHINE: dict[str, Any] = {
    "rows": 8,
    "cols": 8,
    "dataflow": "os",
    "frequency_mhz": 200.0,
    "sram_ifmap_kib": 64,
    "sram_filter_kib": 64,
    "sram_ofmap_kib": 64,
    "dram_bytes_per_cycle": 10,
    "vector_lanes": None,
    "bf16_macs_per_pe_cycle": None,
    "fp32_macs_per_pe_cycle": None,
    "quoted_tops": None,
}
TABLE: dict[str, Any] = {
    "int8_mac_pj": 2,
    "bf16_mac_pj": 29,
    "fp32_mac_pj": 31,
    "vector_op_pj": 37,
    "sram": [
        {"kib": 0.5, "read_pj_per_byte": 3, "write_pj_per_byte": 5},
        {"kib": 0.625, "read_pj_per_byte": 7, "write_pj_per_byte": 11},
        {"kib": 2, "read_pj_per_byte": 13, "write_pj_per_byte": 17},
    ],
    "dram_read_pj_per_byte": 19,
    "dram_write_pj_per_byte": 23,
}


def sourced(fields: dict[str, Any]) -> dict[str, dict[str, str]]:
    """A source for each field that is given."""
    return {name: {"source": "test", "status": "assumed"} for name, value in fields.items() if value is not None}


def machine(**change: Any) -> HardwareProfile:
    """An 8 x 8 machine of int8 alone, without a vector unit, but for the changes."""
    given = MACHINE | change
    return HardwareProfile(name="test", sources=sourced(given), notes="", **given)


def halves(ifmap: float, filters: float, ofmap: float) -> dict[str, float]:
    """The memories of a machine whose halves hold so many bytes."""
    names = ("sram_ifmap_kib", "sram_filter_kib", "sram_ofmap_kib")
    return {name: half / HALF_KIB for name, half in zip(names, (ifmap, filters, ofmap), strict=True)}


def gemm(m: int = 100, n: int = 16, k: int = 150, **change: Any) -> Gemm:
    """One int8 GEMM of the forward pass, but for the changes."""
    return Gemm(**({"layer": "conv", "role": "output", "count": 1, "bits_a": 8, "bits_b": 8} | change), m=m, n=n, k=k)


def workload(*gemms: Gemm, **change: Any) -> Workload:
    """A step of so many GEMMs, batch 4, col2im."""
    return Workload(**({"gemms": gemms, "batch_size": 4, "grad_input_form": "col2im"} | change))


def lenet5_step(**change: Any) -> Workload:
    """The 14 GEMMs of a training step of LeNet-5, batch 4."""
    with (GOLDEN / "lenet5_train_b4_col2im_gemm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    gemms = []
    for row in rows:
        layer, _, part = row["Layer"].partition("_")
        gemms.append(gemm(int(row["M"]), int(row["N"]), int(row["K"]), layer=layer, role=ROLE_OF[part]))
    return workload(*gemms, **change)


def table(**change: Any) -> EnergyTable:
    """An energy table of small primes, but for the changes."""
    given = TABLE | change
    return EnergyTable(name="test", sources=sourced(given), notes="", **given)


def priced(
    item: Gemm,
    base: HardwareProfile | None = None,
    *,
    convention: str = "exact",
    energy: EnergyTable | None = None,
    **axes: Any,
) -> GemmPrices:
    """The price of one GEMM, [P, 1], on P machines like `base` but for the axes."""
    machines = Machines.vary(base or machine(), axes)
    return price_gemms(gemm_arrays(workload(item)), machines, convention=convention, energy=energy)


def moved(prices: GemmPrices) -> tuple[int, int, int, int]:
    """Off-chip bytes of the first GEMM on the first machine: read of a, b and the result, written of the result."""
    traffic = prices.traffic
    names = ("ifmap_reads", "filter_reads", "ofmap_reads", "ofmap_writes")
    first = tuple(int(getattr(traffic, name)[0, 0]) for name in names)
    return first[0], first[1], first[2], first[3]
