"""Searches that price everything or draw at random, what they keep, and their budget."""

import csv
from unittest import mock

import numpy as np
import pytest

from octo_exp.base.errors import UserError
from octo_exp.hw.search.scan import Problem, checked_budget, drive
from tests.hw.helpers import GOLDEN, gemm, workload
from tests.hw.search_helpers import FLOWS, LARGE, LENET, SMALL, genetic, problem, scan
from tests.hw.test_pareto import by_definition
from tests.refusals import assert_names


def test_all_arrays_of_64_pes_come_in_the_order_of_scalesims_own_exhaustive_search():
    axes = {"rows": {"powers_of_two": [1, 64]}, "cols": {"powers_of_two": [1, 64]}, "dataflow": FLOWS}
    given = problem(axes, LENET, convention="scalesim", processing_elements=64)
    found = given.columns(drive(scan(given)).best(100))
    with (GOLDEN / "dse_lenet5_pe64_exhaustive.csv").open(newline="") as file:
        golden = list(csv.DictReader(file))
    arrays = [f"{rows}x{cols}" for rows, cols in zip(found["rows"], found["cols"], strict=True)]
    assert arrays == [row["array"] for row in golden]
    assert found["dataflow"] == [row["dataflow"] for row in golden]
    assert found["cycles"] == [int(row["scalesim_total_cycles"]) for row in golden]


def test_an_exhaustive_search_prices_every_feasible_point_once():
    given = problem(SMALL, processing_elements={"max": 64})
    archive = drive(scan(given))
    assert np.array_equal(archive.points, np.arange(len(given.space)))
    assert np.array_equal(archive.costs, given(archive.points))
    assert archive.best(1).costs[0, 0] == archive.costs.min()


def test_the_order_is_by_the_first_objective_then_the_others_then_the_number():
    for names in (["processing_elements"], ["processing_elements", "cycles"], ["memory", "processing_elements"]):
        best = drive(scan(problem(SMALL, names=names))).best(10**6)
        keys = [(*costs, point) for costs, point in zip(best.costs.tolist(), best.points.tolist(), strict=True)]
        assert keys == sorted(keys)


@pytest.mark.parametrize("names", [["cycles"], ["cycles", "processing_elements"], ["cycles", "utilization", "memory"]])
@pytest.mark.parametrize("limit", [1, 40, 100])
def test_a_search_that_cannot_keep_everything_keeps_the_front_and_the_best(names, limit):
    given = problem(SMALL | {"sram_ifmap_kib": [1, 64]}, names=names)
    with mock.patch.object(Problem, "chunk", 16):
        whole, pruned = drive(scan(given)), drive(scan(given, limit=limit, top=7))
    assert (whole.is_complete, pruned.is_complete) == (True, False)
    assert pruned.evaluated == len(given.space)
    assert len(pruned.points) <= 7 + len(whole.front().points)
    for ours, theirs in ((pruned.front(), whole.front()), (pruned.best(7), whole.best(7))):
        assert np.array_equal(ours.points, theirs.points)
        assert np.array_equal(ours.costs, theirs.costs)


@pytest.mark.parametrize("names", [["cycles", "processing_elements"], ["cycles", "memory", "utilization"]])
def test_the_front_is_the_set_that_nothing_dominates(names):
    given = problem(SMALL | {"sram_filter_kib": [1, 2]}, names=names)
    archive = drive(scan(given))
    front = archive.front()
    assert set(front.points) == set(archive.points[by_definition(archive.costs)])
    assert by_definition(front.costs).all()


def test_a_random_search_prices_distinct_points_drawn_by_its_seed():
    given = problem(LARGE, processing_elements={"max": 1024})
    found = [drive(scan(given, sample=500, seed=seed)) for seed in (0, 0, 1)]
    assert len(set(found[0].points)) == 500
    assert np.array_equal(found[0].points, found[1].points)
    assert not np.array_equal(found[0].points, found[2].points)
    everything = drive(scan(given, sample=len(given.space)))
    assert np.array_equal(np.sort(everything.points), np.arange(len(given.space)))


def test_a_space_of_one_point_is_searched():
    given = problem({"rows": [7]}, workload(gemm(1, 1, 1)))
    assert drive(genetic(given, budget=1)).points.tolist() == [0]
    assert drive(scan(given)).front().points.tolist() == [0]


@pytest.mark.parametrize(
    ("budget", "method", "wanted"),
    [(None, "exhaustive", 777), (None, "genetic", 77), (None, "random", 77), (5, "nsga2", 5), (10**9, "genetic", 777)],
)
def test_a_budget_is_a_tenth_unless_given_and_at_most_the_space(budget, method, wanted):
    assert checked_budget(budget, method, 777) == wanted


def test_no_budget_is_zero_and_none_is_endless_by_default():
    assert checked_budget(None, "genetic", 3) == 1
    assert checked_budget(None, "genetic", 10**12) == 100_000


@pytest.mark.parametrize(
    ("budget", "method", "line"),
    [
        (5, "exhaustive", "search.budget=5: an exhaustive search prices all 777 points; write search.budget=null"),
        (0, "genetic", "search.budget ... or null, got 0"),
        (1.5, "random", "search.budget ... or null, got 1.5"),
        (True, "random", "search.budget ... or null, got True"),
        ("x", "nsga2", "got 'x'"),
    ],
)
def test_a_wrong_budget_is_one_line(budget, method, line):
    with pytest.raises(UserError) as caught:
        checked_budget(budget, method, 777)
    assert_names(caught.value, line)
