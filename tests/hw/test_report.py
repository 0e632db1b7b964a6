import csv
from dataclasses import replace
from pathlib import Path

import pytest

from octo_exp.errors import UserError
from octo_exp.hw import ROLES, Gemm, HardwareProfile, Workload, training_step_cost

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "scalesim"
ROLE_OF = {"fwd": "output", "dgrad": "grad_input", "wgrad": "grad_weight"}
NUMBERS = {
    "frequency_mhz": 200.0,
    "sram_ifmap_kib": 64,
    "sram_filter_kib": 64,
    "sram_ofmap_kib": 64,
    "dram_bytes_per_cycle": 10,
}


def machine(rows, cols, dataflow):
    given = {"rows": rows, "cols": cols, "dataflow": dataflow, **NUMBERS}
    sources = {name: {"source": "test", "status": "assumed"} for name in given}
    return HardwareProfile(name="test", quoted_tops=None, sources=sources, notes="", **given)


def gemm(**change):
    good = {"layer": "conv", "role": "output", "m": 100, "n": 16, "k": 150, "count": 1, "bits_a": 8, "bits_b": 8}
    return Gemm(**(good | change))


def workload(*gemms, batch_size=4, grad_input_form="col2im"):
    return Workload(gemms=gemms, batch_size=batch_size, grad_input_form=grad_input_form)


def lenet5_step():
    with (GOLDEN / "lenet5_train_b4_col2im_gemm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    gemms = []
    for row in rows:
        layer, _, part = row["Layer"].partition("_")
        gemms.append(gemm(layer=layer, role=ROLE_OF[part], m=int(row["M"]), n=int(row["N"]), k=int(row["K"])))
    return workload(*gemms)


def golden_step(side, dataflow):
    with (GOLDEN / "goldens.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["topology"].startswith("lenet5_train")]
    return {row["layer"]: row for row in rows if (row["rows"], row["dataflow"]) == (str(side), dataflow)}


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
@pytest.mark.parametrize("side", [16, 32])
def test_every_row_of_a_training_step_equals_scalesim(side, dataflow):
    report = training_step_cost(lenet5_step(), machine(side, side, dataflow), convention="scalesim")
    golden = golden_step(side, dataflow)
    part_of = {role: part for part, role in ROLE_OF.items()}
    assert len(report.rows) == len(golden) == 14
    for row in report.rows:
        want = golden[f"{row.layer}_{part_of[row.role]}"]
        assert row.cycles == int(want["total_cycles"])
        assert 100 * row.utilization == pytest.approx(float(want["overall_util_pct"]), rel=1e-6)


def test_totals_of_the_three_passes():
    report = training_step_cost(lenet5_step(), machine(16, 16, "os"), convention="scalesim")
    passes = (report.forward_cycles, report.grad_input_cycles, report.grad_weight_cycles)
    assert passes == (19729, 16398, 19263)
    assert report.train_step_cycles == sum(passes) == 55390
    assert (report.batch_size, report.grad_input_form, report.convention) == (4, "col2im", "scalesim")


def test_true_convention_adds_one_cycle_per_gemm():
    short = training_step_cost(lenet5_step(), machine(16, 16, "os"), convention="scalesim")
    true = training_step_cost(lenet5_step(), machine(16, 16, "os"), convention="true")
    assert true.train_step_cycles == short.train_step_cycles + 14


def test_identical_gemms_cost_as_often_as_they_occur():
    one = training_step_cost(workload(gemm()), machine(8, 8, "ws"), convention="scalesim").rows[0]
    many = training_step_cost(workload(gemm(count=7)), machine(8, 8, "ws"), convention="scalesim").rows[0]
    assert (many.cycles, many.macs) == (7 * one.cycles, 7 * one.macs)
    assert many.utilization == pytest.approx(one.macs / (one.cycles * 64), rel=1e-12)


def test_milliseconds_follow_the_clock():
    profile = machine(16, 16, "os")
    slow = training_step_cost(lenet5_step(), profile, convention="true")
    fast = training_step_cost(lenet5_step(), replace(profile, frequency_mhz=400.0), convention="true")
    assert slow.train_step_ms == pytest.approx(slow.train_step_cycles / 200e3, rel=1e-12)
    assert fast.train_step_ms == pytest.approx(slow.train_step_ms / 2, rel=1e-12)
    assert fast.train_step_cycles == slow.train_step_cycles


def test_totals_are_named_as_they_are_logged():
    report = training_step_cost(lenet5_step(), machine(16, 16, "os"), convention="scalesim")
    assert report.totals() == {
        "forward_cycles": 19729,
        "grad_input_cycles": 16398,
        "grad_weight_cycles": 19263,
        "train_step_cycles": 55390,
        "train_step_ms": report.train_step_ms,
    }


def test_an_empty_workload_costs_nothing():
    report = training_step_cost(workload(), machine(8, 8, "os"), convention="true")
    assert (report.rows, report.train_step_cycles, report.train_step_ms) == ((), 0, 0.0)


def test_workloads_add_in_order():
    first, second = workload(gemm(layer="a")), workload(gemm(layer="b"), gemm(layer="b", role="grad_weight"))
    both = first + second
    assert [item.layer for item in both.gemms] == ["a", "b", "b"]
    assert both.macs == first.macs + second.macs == 3 * 100 * 16 * 150
    assert [len(both.of_role(role)) for role in ROLES] == [2, 0, 1]


@pytest.mark.parametrize("change", [{"batch_size": 8}, {"grad_input_form": "im2col"}])
def test_unlike_workloads_do_not_add(change):
    with pytest.raises(UserError, match=next(iter(change))):
        workload(gemm()) + workload(gemm(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "forward"}, "role must be one of output, grad_input, grad_weight"),
        ({"m": 0}, "layer 'conv': m must be a whole number greater than zero"),
        ({"count": 1.5}, "count must be a whole number"),
        ({"bits_a": -8}, "bits_a must be"),
    ],
)
def test_bad_gemm_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        gemm(**change)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"grad_input_form": "direct"}])
def test_bad_workload_is_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        workload(gemm(), **change)
