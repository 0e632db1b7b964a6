from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from octo_exp.hw.energy import EnergyTable

FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "energy").glob("*.yaml"))
NUMBERS = (
    "int8_mac_pj",
    "bf16_mac_pj",
    "fp32_mac_pj",
    "vector_op_pj",
    "sram",
    "dram_read_pj_per_byte",
    "dram_write_pj_per_byte",
)
# Picojoules of an access of so many bits, as the sources give them: capacity in KiB -> (read, write, bits).
ACCESSES = {
    "horowitz_45nm": {8: (10, 10, 64), 32: (20, 20, 64), 1024: (100, 100, 64)},
    "jouppi_7nm": {8: (7.5, 7.5, 64), 32: (8.5, 8.5, 64), 1024: (14, 14, 64)},
    "zigzag": {
        32: (22.9, 52.01, 512),
        64: (26.56, 30.8, 512),
        1024: (208.08, 189.2, 1024),
        2048: (416.16, 378.4, 2048),
    },
}
OFF_CHIP = {"horowitz_45nm": (1300, 1300, 64), "jouppi_7nm": (1300, 1300, 64), "zigzag": (700, 750, 64)}
# A MAC is a multiplication of the operands' width and an addition in 32 bits: (multiplication, addition).
MACS = {
    "horowitz_45nm": {"int8": (0.2, 0.1), "bf16": (1.1, 0.9), "fp32": (3.7, 0.9)},
    "jouppi_7nm": {"int8": (0.07, 0.03), "bf16": (0.21, 0.38), "fp32": (1.31, 0.38)},
    "zigzag": {"int8": (0.04, 0)},
}


def loaded(stem):
    (path,) = (path for path in FILES if path.stem == stem)
    return instantiate(OmegaConf.load(path))


def close(value):
    """Within three roundings of a double: of a figure, of another one, and of their sum or quotient."""
    return pytest.approx(value, rel=3 * 2**-53, abs=0)


def test_required_tables_exist():
    assert {path.stem for path in FILES} >= set(ACCESSES) == set(OFF_CHIP) == set(MACS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_yaml_is_a_table_with_sources(path):
    assert path.read_text().splitlines()[0] == "# @package energy"
    table = instantiate(OmegaConf.load(path))
    assert isinstance(table, EnergyTable)
    assert table.name == path.stem
    assert set(table.sources) == {name for name in NUMBERS if getattr(table, name) is not None}
    for entry in table.sources.values():
        assert len(entry["source"]) > 10
        assert entry["status"] in ("verified", "assumed")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_numbers_that_nobody_read_are_called_unverified(path):
    table = instantiate(OmegaConf.load(path))
    if any(entry["status"] == "assumed" for entry in table.sources.values()):
        assert "unverified" in table.notes.lower()


@pytest.mark.parametrize("stem", ACCESSES)
def test_memories_cost_what_the_source_says(stem):
    table = loaded(stem)
    assert [row["kib"] for row in table.sram] == list(ACCESSES[stem])
    for kib, (read, write, bits) in ACCESSES[stem].items():
        for found, access in zip(table.sram_pj_per_byte(kib), (read, write), strict=True):
            assert float(found) == close(access / (bits / 8))
    read, write, bits = OFF_CHIP[stem]
    assert table.dram_read_pj_per_byte == close(read / (bits / 8))
    assert table.dram_write_pj_per_byte == close(write / (bits / 8))


@pytest.mark.parametrize("stem", MACS)
def test_a_mac_is_a_multiplication_and_a_wide_addition(stem):
    table = loaded(stem)
    for width in ("int8", "bf16", "fp32"):
        figures = MACS[stem].get(width)
        assert table.mac_pj(width) == (None if figures is None else close(sum(figures)))


@pytest.mark.parametrize("stem", ["horowitz_45nm", "jouppi_7nm"])
def test_a_vector_operation_is_half_a_float_mac(stem):
    assert loaded(stem).vector_op_pj == close(sum(MACS[stem]["fp32"]) / 2)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_wider_mac_and_a_farther_byte_cost_more(path):
    table = instantiate(OmegaConf.load(path))
    macs = [table.mac_pj(width) for width in ("int8", "bf16", "fp32") if table.mac_pj(width) is not None]
    assert macs == sorted(macs)
    for direction in ("read", "write"):
        on_chip = [row[f"{direction}_pj_per_byte"] for row in table.sram]
        assert max(on_chip) < getattr(table, f"dram_{direction}_pj_per_byte")
