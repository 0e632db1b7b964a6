"""The genetic search: near the best for a tenth of the prices, by its seed, part by part."""

import numpy as np
import pytest

from octo_exp.hw.search.genetic import fitness_order, mutated, repaired, tournament
from octo_exp.hw.search.scan import drive
from octo_exp.hw.search.space import Space
from tests.hw.helpers import machine
from tests.hw.search_helpers import LARGE, SMALL, genetic, problem, scan


@pytest.mark.parametrize("most", [1024, pytest.param(4096, marks=pytest.mark.slow)])
def test_the_genetic_search_comes_near_the_best_for_a_tenth_of_the_prices(most):
    given = problem(LARGE, processing_elements={"max": most})
    feasible = len(given.space)
    assert feasible >= 10_000
    best = drive(scan(given)).costs.min()

    def near(make):
        return sum(drive(make(seed)).costs.min() <= 1.01 * best for seed in range(10))

    assert near(lambda seed: genetic(given, budget=feasible // 10, seed=seed)) >= 9
    # What chance finds with the same budget says that the space is not easy.
    assert near(lambda seed: scan(given, sample=feasible // 10, seed=seed)) <= 5


@pytest.mark.parametrize("names", [["cycles"], ["cycles", "processing_elements"]])
def test_a_genetic_budget_counts_distinct_feasible_points(names):
    given = problem(LARGE, names=names, processing_elements={"min": 100, "max": 700})
    archive = drive(genetic(given, budget=333))
    assert archive.evaluated == len(set(archive.points)) == 333
    assert np.array_equal(archive.costs, given(archive.points))
    elements = given.space.machines(given.space.decode(archive.points)).processing_elements
    assert elements.min() >= 100
    assert elements.max() <= 700


def test_a_genetic_search_is_decided_by_its_seed():
    given = problem(LARGE, processing_elements={"max": 1024})
    found = [drive(genetic(given, budget=400, seed=seed)).points for seed in (3, 3, 4)]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "constraints", [{}, {"processing_elements": 36}, {"processing_elements": 7}, {"processing_elements": {"max": 2}}]
)
def test_a_genetic_search_may_price_everything(constraints):
    given = problem(SMALL, **constraints)
    archive = drive(genetic(given, budget=len(given.space)))
    assert np.array_equal(np.sort(archive.points), np.arange(len(given.space)))


def test_a_genetic_front_of_two_objectives_is_near_the_true_one():
    given = problem(LARGE, names=["cycles", "processing_elements"], processing_elements={"max": 1024})
    true, budget = drive(scan(given)).front(), len(given.space) // 10

    def reached(search):
        """Share of the true front that has a found point at most 5 % above it in both objectives."""
        found = drive(search).front()
        return (found.costs[None] <= 1.05 * true.costs[:, None]).all(2).any(1).mean()

    genes, chance = (
        [reached(search(seed)) for seed in range(5)]
        for search in (
            lambda seed: genetic(given, budget=budget, seed=seed),
            lambda seed: scan(given, sample=budget, seed=seed),
        )
    )
    assert min(genes) >= 0.8
    assert max(chance) < min(genes)


def test_the_fittest_are_of_the_lowest_rank_then_where_there_is_room():
    points = np.array([5, 4, 3, 2, 1])
    line = np.array([[0.0, 9.0], [1.0, 8.0], [2.0, 7.0], [9.0, 0.0], [9.0, 9.0]])
    # The ends of the front, then the wider gap (2, 7), the narrower (1, 8), and what is dominated.
    assert points[fitness_order(points, line)].tolist() == [2, 5, 3, 4, 1]
    assert points[fitness_order(points, line[:, :1])].tolist() == [5, 4, 3, 1, 2]


def test_of_two_drawn_parents_the_fitter_wins():
    places = tournament(4, (2, 4000), np.random.default_rng(0))
    assert places.shape == (2, 4000)
    # The smaller of two draws out of 4: (7, 5, 3, 1) / 16, within five standard deviations of 8000 draws.
    assert np.bincount(places.ravel()) / 8000 == pytest.approx([7 / 16, 5 / 16, 3 / 16, 1 / 16], abs=0.03)


def test_a_mutation_changes_at_least_one_axis_and_stays_inside_it():
    space = Space(machine(), LARGE | {"dataflow": ["os", "ws", "is", "per_gemm"]}, {})
    rng = np.random.default_rng(0)
    digits = space.decode(rng.integers(len(space), size=2000))
    children = mutated(space, digits, rng)
    assert (children >= 0).all()
    assert (children < np.array(space.sizes)).all()
    # A step beyond the end of an axis stays at the end; a dataflow always becomes another one.
    moved = children != digits
    assert moved.any(1).mean() > 0.9
    assert 0.4 < moved[:, 2].mean() < 0.8
    sizes = np.abs(children - digits)[:, 0]
    assert {1, 2, 3} <= set(sizes)
    assert sizes.max() > 60


def test_repair_moves_one_axis_to_the_nearest_feasible_value():
    space = Space(
        machine(), {"rows": {"from": 1, "to": 64}, "cols": {"from": 1, "to": 64}}, {"processing_elements": 64}
    )
    rng = np.random.default_rng(0)
    # 16 x 8 becomes 8 x 8 or 16 x 4; 7 x 9 has no such neighbour; 4 x 16 is feasible.
    for _ in range(8):
        points = repaired(space, np.array([[15, 7], [6, 8], [3, 15]]), rng)
        found = space.columns(points[[0, 2]])
        assert (found["rows"][0], found["cols"][0]) in {(8, 8), (16, 4)}
        assert points[1] == -1
        assert (found["rows"][1], found["cols"][1]) == (4, 16)
    capped = Space(machine(), {"rows": {"from": 1, "to": 64}, "cols": [8]}, {"processing_elements": {"max": 64}})
    assert capped.columns(repaired(capped, np.array([[62, 0]]), rng)) == {"rows": [8], "cols": [8]}
