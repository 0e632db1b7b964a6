import copy
import inspect
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from octo_exp.base.errors import UserError
from octo_exp.hw import HardwareProfile
from tests.hw.helpers import lenet5_step, moved, priced

FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "hw").glob("*.yaml"))
SOURCED = (
    "rows",
    "cols",
    "dataflow",
    "frequency_mhz",
    "sram_ifmap_kib",
    "sram_filter_kib",
    "sram_ofmap_kib",
    "dram_bytes_per_cycle",
    "vector_lanes",
    "bf16_macs_per_pe_cycle",
    "fp32_macs_per_pe_cycle",
    "quoted_tops",
)
OPTIONAL = SOURCED[-4:]
MACS = {"ethos_u55_32": 32, "ethos_u55_64": 64, "ethos_u55_128": 128, "ethos_u55_256": 256}
MACS |= {"eyeriss_like": 168, "jetson_xavier_dla": 2048, "stm32f746": 2}


def fields(**change):
    good = {
        "name": "toy",
        "rows": 4,
        "cols": 8,
        "dataflow": "os",
        "frequency_mhz": 500,
        "sram_ifmap_kib": 64,
        "sram_filter_kib": 64,
        "sram_ofmap_kib": 64,
        "dram_bytes_per_cycle": 2.5,
        "vector_lanes": 8,
        "bf16_macs_per_pe_cycle": 0.5,
        "fp32_macs_per_pe_cycle": 0.25,
        "quoted_tops": 0.032,
        "sources": {name: {"source": "a data sheet", "status": "verified"} for name in SOURCED},
        "notes": "",
    }
    return good | change


def without(mapping, *names):
    return {key: value for key, value in mapping.items() if key not in names}


def loaded(stem):
    (path,) = (path for path in FILES if path.stem == stem)
    return instantiate(OmegaConf.load(path))


def test_required_profiles_exist():
    named = {path.stem for path in FILES}
    squares = {f"systolic_{side}x{side}" for side in (8, 16, 32, 64, 128, 256)}
    assert squares | set(MACS) | {"tpu_v1", "gemmini", "edge_tpu", "ascend310"} <= named


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_yaml_is_a_profile_with_sources(path):
    assert path.read_text().splitlines()[0] == f"# @package hw.{path.stem}"
    profile = instantiate(OmegaConf.load(path))
    assert isinstance(profile, HardwareProfile)
    assert profile.name == path.stem
    numbers = [name for name in SOURCED if getattr(profile, name) is not None]
    assert list(sorted(profile.sources)) == sorted(numbers)
    for entry in profile.sources.values():
        assert len(entry["source"]) > 10
        assert entry["status"] in ("verified", "assumed")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_peak_is_within_three_percent_of_the_quoted_figure(path):
    profile = instantiate(OmegaConf.load(path))
    if profile.quoted_tops is None:
        assert "quoted_tops" not in profile.sources
        assert re.search("quote.* TOPS|TOPS .*quote", profile.notes), "its notes say that no peak is quoted"
    elif abs(profile.peak_tops / profile.quoted_tops - 1) > 0.03:
        assert "TOPS" in profile.notes, "a profile whose peak differs from the quoted figure says why in its notes"


def test_peak_counts_a_mac_as_two_operations():
    assert HardwareProfile(**fields()).peak_tops == pytest.approx(2 * 4 * 8 * 500e6 / 1e12, rel=1e-15)


@pytest.mark.parametrize("stem", ["ascend310", "edge_tpu", "tpu_v1", *MACS])
def test_approximations_say_so(stem):
    assert "approximation" in loaded(stem).notes.lower()


@pytest.mark.parametrize(("stem", "macs"), MACS.items())
def test_a_machine_that_is_no_such_array_has_all_its_macs(stem, macs):
    assert loaded(stem).processing_elements == macs


@pytest.mark.parametrize("side", [8, 16, 32, 64, 128, 256])
def test_a_square_array_has_a_lane_a_column_and_slower_floats(side):
    profile = loaded(f"systolic_{side}x{side}")
    assert (profile.rows, profile.cols, profile.vector_lanes) == (side, side, side)
    assert (profile.bf16_macs_per_pe_cycle, profile.fp32_macs_per_pe_cycle) == (0.5, 0.25)
    assert not any(entry["status"] == "verified" for entry in profile.sources.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_wider_floats_are_no_faster(path):
    profile = instantiate(OmegaConf.load(path))
    if profile.bf16_macs_per_pe_cycle is not None and profile.fp32_macs_per_pe_cycle is not None:
        assert profile.fp32_macs_per_pe_cycle <= profile.bf16_macs_per_pe_cycle


def test_a_product_split_by_us_keeps_its_memory():
    assert loaded("stm32f746").sram_kib == 320
    assert loaded("eyeriss_like").sram_kib == 108
    assert [loaded(f"ethos_u55_{macs}").sram_kib for macs in (32, 64, 128, 256)] == [16, 16, 24, 48]


def test_a_profile_is_a_value():
    profile = HardwareProfile(**fields())
    assert profile == HardwareProfile(**fields())
    assert len({profile, HardwareProfile(**fields())}) == 1
    assert pickle.loads(pickle.dumps(profile)) == copy.deepcopy(profile) == profile
    assert replace(profile, rows=16).rows == 16
    with pytest.raises(AttributeError):
        profile.rows = 5


def test_the_constructor_keeps_its_signature():
    parameters = inspect.signature(HardwareProfile).parameters.values()
    assert [parameter.name for parameter in parameters] == list(fields())
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (without(fields(), "rows"), "hardware profile 'toy': missing field 'rows'"),
        (without(fields(), "name"), "hardware profile: missing field 'name'"),
        (fields(row=4), "unknown field 'row'; did you mean 'rows'"),
        (fields(zzz=4), "unknown field 'zzz'; its fields are name, rows"),
        (fields(rows=-4), "rows .* got -4"),
        (fields(rows=4.5), "rows .* got 4.5"),
        (fields(cols=True), "cols .* got True"),
        (fields(frequency_mhz="1 GHz"), "frequency_mhz .* got '1 GHz'"),
        (fields(frequency_mhz=0), "frequency_mhz .* got 0"),
        (fields(dram_bytes_per_cycle=float("nan")), "dram_bytes_per_cycle .* got nan"),
        (fields(quoted_tops=-1), "quoted_tops .* got -1"),
        (fields(vector_lanes=0), "vector_lanes .* got 0"),
        (fields(vector_lanes=2.5), "vector_lanes .* got 2.5"),
        (fields(bf16_macs_per_pe_cycle=1.5), "bf16_macs_per_pe_cycle must be at most 1, got 1.5"),
        (fields(fp32_macs_per_pe_cycle=2), "fp32_macs_per_pe_cycle must be at most 1, got 2"),
        (fields(fp32_macs_per_pe_cycle=0), "fp32_macs_per_pe_cycle .* got 0"),
        (fields(dataflow="rs"), "dataflow must be one of os, ws, is, per_gemm, got 'rs'"),
        (fields(name="a/b"), "name .* letters"),
        (fields(notes=3), "notes must be a text"),
        (fields(sources=None), "sources .* got None"),
        (fields(sources=without(fields()["sources"], "cols")), r"sources.cols must be \{source: <text>"),
        (fields(sources=fields()["sources"] | {"cols": {"source": "guess"}}), r"sources.cols must be \{source"),
        (fields(sources=fields()["sources"] | {"voltage": {}}), "sources names 'voltage'"),
        (
            fields(sources=fields()["sources"] | {"cols": {"source": "guess", "status": "sure"}}),
            "sources.cols.status must be verified or assumed, got 'sure'",
        ),
    ],
)
def test_bad_profile_is_one_clear_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        HardwareProfile(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_a_machine_lacks_has_no_source(name):
    """None needs no source and may not have one; a number needs one."""
    sources = without(fields()["sources"], name)
    assert getattr(HardwareProfile(**fields(**{name: None}, sources=sources)), name) is None
    with pytest.raises(UserError, match=f"sources names '{name}'"):
        HardwareProfile(**fields(**{name: None}))
    with pytest.raises(UserError, match=rf"sources.{name} must be \{{source"):
        HardwareProfile(**fields(sources=sources))


@pytest.mark.parametrize("name", ["bf16_macs_per_pe_cycle", "fp32_macs_per_pe_cycle"])
@pytest.mark.parametrize("rate", [0.125, 1, 1.0])
def test_a_rate_is_at_most_that_of_int8(name, rate):
    assert getattr(HardwareProfile(**fields(**{name: rate})), name) == rate


def test_a_machine_may_choose_its_dataflow():
    assert HardwareProfile(**fields(dataflow="per_gemm")).dataflow == "per_gemm"


def test_a_bad_yaml_carries_the_clear_line_through_hydra():
    config = OmegaConf.create({"_target_": "octo_exp.hw.profile.HardwareProfile", **without(fields(), "rows")})
    with pytest.raises(InstantiationException) as caught:
        instantiate(config)
    assert isinstance(caught.value.__cause__, UserError)
    assert "missing field 'rows'" in str(caught.value.__cause__)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_floats_on_the_vector_unit_move_no_fewer_bytes_than_int8_on_the_array(path):
    given = instantiate(OmegaConf.load(path))
    if given.vector_lanes is None:
        pytest.skip("the machine has no vector unit")
    floats = ("bf16_macs_per_pe_cycle", "fp32_macs_per_pe_cycle")
    profile = replace(given, **dict.fromkeys(floats), sources=without(given.sources, *floats))
    for item in lenet5_step().gemms:
        narrow, wide = priced(item, profile), priced(replace(item, bits_a=32, bits_b=32), profile)
        assert (narrow.on_vector.any(), wide.on_vector.all()) == (False, True)
        assert sum(moved(wide)) >= sum(moved(narrow))
