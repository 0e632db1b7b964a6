import itertools
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from octo_exp.base.errors import UserError
from octo_exp.hw import DATAFLOWS, Machines, gemm_cycles, training_step_cost
from octo_exp.hw.search import objectives
from octo_exp.hw.search.objectives import OBJECTIVES, Objectives
from octo_exp.hw.search.scan import Problem
from octo_exp.hw.search.space import Space
from octo_exp.workload import VectorWork
from tests.hw.helpers import gemm, machine, table, workload
from tests.refusals import assert_names

GEMMS = (
    gemm(1, 1, 1),
    gemm(63, 7, 16, layer="float", bits_a=32, bits_b=32),
    gemm(65, 16, 63, layer="half", bits_a=16, bits_b=16, role="grad_weight"),
    gemm(100, 150, 16, layer="groups", count=7, role="grad_input"),
)
WORK = (
    VectorWork(layer="a", role="output", kind="quantize", operations=1000, bytes_read=4000, bytes_written=1000),
    VectorWork(layer="b", role="grad_input", kind="col2im", operations=65, bytes_read=0, bytes_written=7),
)
STEP = workload(*GEMMS, vector=WORK)
INT8 = workload(*(replace(item, bits_a=8, bits_b=8) for item in GEMMS), vector=WORK)
FLOATS = {"bf16_macs_per_pe_cycle": 0.5, "fp32_macs_per_pe_cycle": 0.25}
AXES = {
    "rows": [1, 7, 16],
    "cols": [1, 16, 63],
    "dataflow": ["os", "ws", "is", "per_gemm"],
    "sram_ifmap_kib": [0.5, 64],
    "dram_bytes_per_cycle": [0.3, 100],
}


def reported(cost, profile, name):
    figures = {
        "cycles": cost.train_step_cycles,
        "total_cycles": cost.total_cycles,
        "energy": cost.energy_uj,
        "memory": profile.sram_kib,
        "processing_elements": profile.processing_elements,
        "utilization": cost.utilization,
    }
    return figures[name]


@pytest.mark.parametrize(
    ("base", "step"),
    [
        (machine(vector_lanes=16, **FLOATS), STEP),
        # The vector unit multiplies what the array cannot.
        (machine(vector_lanes=7, bf16_macs_per_pe_cycle=0.5), STEP),
        # Without one there must be no work beside the GEMMs.
        (machine(), replace(INT8, vector=())),
    ],
    ids=["floats", "vector", "int8"],
)
@pytest.mark.parametrize("convention", ["exact", "scalesim"])
def test_every_objective_is_that_of_the_report(base, step, convention):
    names = [name for name in OBJECTIVES if convention == "exact" or name not in ("total_cycles", "energy")]
    energy = table()
    space = Space(base, AXES, {})
    points = np.arange(0, len(space), 5)
    found = Objectives(names, step, convention=convention, energy=energy)(space.machines(space.decode(points)))
    alone = {
        name: Objectives([name], step, convention=convention, energy=energy)(space.machines(space.decode(points)))[name]
        for name in names
    }
    for place, point in enumerate(points):
        profile = space.profile(int(point), name="point")
        cost = training_step_cost(step, profile, convention=convention, energy=energy)
        for name in names:
            wanted = reported(cost, profile, name)
            if OBJECTIVES[name].whole:
                assert found[name][place] == wanted
            else:
                # Sums of 6 positive terms in another order, and 3 roundings more.
                assert found[name][place] == pytest.approx(wanted, rel=10 * np.finfo(float).eps)
            assert alone[name][place] == found[name][place]


def test_a_figure_does_not_depend_on_its_neighbours():
    space = Space(machine(vector_lanes=16, **FLOATS), AXES, {})
    priced = Objectives(["energy", "total_cycles"], STEP, convention="exact", energy=table())
    together = priced.costs(space.machines(space.decode(np.arange(len(space)))))
    alone = [priced.costs(space.machines(space.decode(np.array([point])))) for point in range(len(space))]
    assert np.array_equal(together, np.concatenate(alone))


def test_a_maximized_objective_is_negated_to_be_searched_and_written_as_it_is():
    space = Space(machine(), {"rows": [1, 16]}, {})
    chosen = Objectives(["utilization", "cycles"], INT8, convention="exact", energy=None)
    machines = space.machines(space.decode(np.arange(2)))
    costs = chosen.costs(machines)
    assert np.array_equal(costs[:, 0], -chosen(machines)["utilization"])
    columns = chosen.columns(costs)
    assert columns["utilization"] == chosen(machines)["utilization"].tolist()
    assert [type(value) for value in columns["cycles"]] == [int, int]


def test_only_what_is_asked_for_is_computed():
    space = Space(machine(), AXES | {"dataflow": ["os", "ws", "is"]}, {})
    machines = space.machines(space.decode(np.arange(len(space))))
    with (
        mock.patch.object(objectives, "price_gemms", side_effect=AssertionError),
        mock.patch.object(objectives, "price_vector", side_effect=AssertionError),
    ):
        Objectives(["cycles", "utilization", "memory"], INT8, convention="exact", energy=table())(machines)
        with mock.patch.object(objectives, "gemm_cycles", side_effect=AssertionError):
            Objectives(["memory", "processing_elements"], INT8, convention="exact", energy=None)(machines)


@pytest.mark.parametrize(
    ("names", "convention", "energy", "line"),
    [
        ([], "exact", None, "objectives is empty: choose one or more of cycles, total_cycles"),
        (["latency"], "exact", None, "unknown objective 'latency': choose among cycles, total_cycles, energy"),
        (["cycles", "cycles"], "exact", None, "objectives names one twice: cycles, cycles"),
        (["cycles"], "true", None, "unknown cycle convention 'true': choose one of exact, scalesim"),
        (["energy"], "exact", None, "objective 'energy' needs an energy table: choose one, e.g. energy="),
        (["total_cycles"], "scalesim", None, "scalesim knows neither widths, stalls nor vector work; choose cycles"),
        (["cycles", "energy"], "scalesim", table(), "objective 'energy': the convention scalesim knows neither widths"),
    ],
)
def test_an_objective_that_no_model_gives_is_one_line(names, convention, energy, line):
    with pytest.raises(UserError) as caught:
        Objectives(names, INT8, convention=convention, energy=energy)
    assert_names(caught.value, line)


def test_a_machine_that_cannot_do_the_workload_is_refused_before_the_search():
    step = Objectives(["cycles"], STEP, convention="exact", energy=None)
    with pytest.raises(UserError, match="multiplies no bf16, which layer 'half'"):
        Problem(Space(machine(), {"rows": [8]}, {}), step)
    # An axis may give what the base lacks, and SCALE-Sim knows no widths.
    Problem(Space(machine(), {"vector_lanes": [8]}, {}), step)
    Problem(Space(machine(), {"rows": [8]}, {}), Objectives(["cycles"], STEP, convention="scalesim", energy=None))
    # Nor does a table count that no objective reads.
    floats, poor = Space(machine(vector_lanes=8), {"rows": [8]}, {}), table(bf16_mac_pj=None)
    Problem(floats, Objectives(["cycles"], STEP, convention="exact", energy=poor))
    with pytest.raises(UserError, match="energy table 'test' has no bf16_mac_pj"):
        Problem(floats, Objectives(["energy"], STEP, convention="exact", energy=poor))


@pytest.mark.parametrize("name", ["energy", "total_cycles"])
def test_work_beside_the_gemms_needs_a_vector_unit(name):
    alone, unit = Space(machine(), {"rows": [8]}, {}), Space(machine(), {"vector_lanes": [8, 16]}, {})
    chosen = Objectives(["cycles", name], INT8, convention="exact", energy=table())
    with pytest.raises(UserError) as caught:
        Problem(alone, chosen)
    assert f"objective {name!r}: hardware profile 'test' has no vector unit for the work" in str(caught.value)
    assert str(caught.value).endswith("give it vector_lanes, or choose cycles")
    Problem(unit, chosen)
    Problem(alone, Objectives(["cycles", "utilization"], INT8, convention="exact", energy=table()))
    Problem(alone, Objectives([name], replace(INT8, vector=()), convention="exact", energy=table()))


@pytest.mark.parametrize(("convention", "name"), [("exact", "total_cycles"), ("scalesim", "cycles")])
def test_choosing_for_each_gemm_beats_every_single_dataflow_and_all_3_to_the_l_choices(convention, name):
    sides = [1, 7, 16, 63, 65]

    def total(dataflow, step):
        axes = {"rows": sides, "cols": sides, "dataflow": [dataflow], "sram_ifmap_kib": [0.1, 64]}
        space = Space(machine(), axes | {"dram_bytes_per_cycle": [1, 100]}, {})
        priced = Objectives([name], step, convention=convention, energy=None)
        return priced(space.machines(space.decode(np.arange(len(space)))))[name]

    step = replace(INT8, vector=())
    free = total("per_gemm", step)
    assert (free <= np.min([total(dataflow, step) for dataflow in DATAFLOWS], axis=0)).all()
    each = [{d: total(d, workload(item)) for d in DATAFLOWS} for item in step.gemms]
    choices = itertools.product(DATAFLOWS, repeat=len(each))
    exhaustive = np.min([sum(e[d] for e, d in zip(each, choice, strict=True)) for choice in choices], axis=0)
    assert np.array_equal(free, exhaustive)


def test_of_equal_dataflows_the_free_choice_is_that_of_fewest_compute_cycles():
    # At 10 bytes a cycle every dataflow takes 9448 cycles with stalls; os computes 63 * 60 of them.
    profile = machine(rows=16, cols=16, dataflow="per_gemm", dram_bytes_per_cycle=10)
    step = workload(gemm(1000, 16, 30))
    report = training_step_cost(step, profile, convention="exact")
    fewest = gemm_cycles(1000, 16, 30, rows=16, cols=16, dataflow="ws", convention="exact")
    assert (report.train_step_cycles, report.total_cycles) == (fewest, 9448)
    assert fewest < 63 * 60
    found = Objectives(["cycles", "utilization"], step, convention="exact", energy=None)(Machines.of([profile]))
    assert found["cycles"] == fewest
    assert found["utilization"] == report.utilization
