"""The compression report against counts by hand."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from octo_exp.exports.formats import report
from octo_exp.exports.request import profile_of
from octo_exp.graph.integers.inference import inference_workload
from octo_exp.hw import training_step_cost
from tests.exports.helpers import exported
from tests.tracing.test_inference import small


def test_rows_by_hand():
    rows = report.rows_of(small(), profile_of("systolic_8x8"))
    assert [row["layer"] for row in rows][-2:] == ["classifier", "total"]
    conv, pool, total = rows[0], rows[1], rows[-1]
    assert (conv["makes"], conv["parameters"], conv["macs"]) == ("4x8x8", 4 * 27 + 4, 64 * 4 * 27)
    assert (conv["size_bytes_before"], conv["size_bytes_after"]) == (4 * 112, 108 + 9 * 4)
    assert (pool["size_bytes_before"], pool["size_bytes_after"], pool["macs"]) == (0, 0, 0)
    assert (conv["memory_bytes_before"], conv["memory_bytes_after"]) == (4 * 448, 448)
    for key in ("parameters", "macs", "size_bytes_after", "cycles_after", "cycles_before"):
        assert total[key] == sum(row[key] for row in rows[:-1])
    assert total["memory_bytes_after"] == 448


@pytest.mark.parametrize("integers", [True, False])
def test_cycles_are_those_of_the_cost_model(integers):
    profile = profile_of("systolic_8x8")
    whole = training_step_cost(inference_workload(small(), integers=integers), profile, convention="exact")
    total = report.rows_of(small(), profile)[-1]
    assert total["cycles_after" if integers else "cycles_before"] == whole.total_cycles


def test_a_machine_of_integers_alone_has_no_price_for_floats(tmp_path):
    profile = profile_of("systolic_8x8")
    sources = {key: v for key, v in profile.sources.items() if key not in ("fp32_macs_per_pe_cycle", "vector_lanes")}
    profile = replace(profile, fp32_macs_per_pe_cycle=None, vector_lanes=None, sources=sources)
    graph = SimpleNamespace(spec=small(), profile=profile)
    facts = exported(report, graph, tmp_path, "net")
    assert facts["cycles_before"] is None
    assert facts["cycles_ratio"] is None
    assert facts["cycles_after"] > 0


def test_the_files_hold_the_rows_and_the_picture(tmp_path):
    graph = SimpleNamespace(spec=small(), profile=None)
    facts = exported(report, graph, tmp_path, "net")
    assert facts["profile"] == report.DEFAULT_PROFILE
    assert facts["memory_ratio"] == 0.25
    with (tmp_path / "net.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["size_bytes_after"]) == facts["size_bytes_after"]
    assert (tmp_path / "net.png").read_bytes()[:4] == b"\x89PNG"
    console = Console(width=120, record=True)
    console.print(report.table(tmp_path / "net.csv"))
    text = console.export_text()
    assert "classifier" in text
    assert f"{facts['cycles_before']:,} / {facts['cycles_after']:,}" in text
