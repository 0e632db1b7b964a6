import csv
from unittest import mock

import numpy as np
import pytest

from octo_exp.errors import UserError
from octo_exp.hw.scalesim import read_topology
from octo_exp.hw.search.genetic import Genetic, fitness_order, mutated, repaired, tournament
from octo_exp.hw.search.objectives import Objectives
from octo_exp.hw.search.scan import Problem, Scan, checked_budget, drive
from octo_exp.hw.search.space import Space
from octo_exp.hw.search.state import Store
from tests.hw.helpers import GOLDEN, gemm, machine, workload
from tests.hw.test_pareto import by_definition

LENET = workload(*read_topology(GOLDEN / "lenet5.csv", "conv"), batch_size=1)
LENET_TRAINING = workload(*read_topology(GOLDEN / "lenet5_train_b4_col2im_gemm.csv", "gemm"))
FLOWS = ["os", "ws", "is"]
SMALL = {"rows": {"from": 1, "to": 12}, "cols": {"from": 1, "to": 12}, "dataflow": FLOWS}
LARGE = {"rows": {"from": 1, "to": 128}, "cols": {"from": 1, "to": 128}, "dataflow": FLOWS}


def problem(axes, step=LENET_TRAINING, *, names=("cycles",), convention="exact", **constraints):
    return Problem(Space(machine(), axes, constraints), Objectives(names, step, convention=convention, energy=None))


def scan(given, *, sample=None, seed=0, limit=10**6, top=20):
    return Scan(given, sample=sample, seed=seed, limit=limit, top=top)


def genetic(given, *, budget, seed=0):
    return Genetic(given, budget=budget, seed=seed)


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


@pytest.mark.parametrize("most", [1024, 4096])
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


def test_a_space_of_one_point_is_searched():
    given = problem({"rows": [7]}, workload(gemm(1, 1, 1)))
    assert drive(genetic(given, budget=1)).points.tolist() == [0]
    assert drive(scan(given)).front().points.tolist() == [0]


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


MAKERS = {
    "exhaustive": lambda given: scan(given),
    "pruned": lambda given: scan(given, limit=50, top=5),
    "random": lambda given: scan(given, sample=300, seed=5),
    "genetic": lambda given: genetic(given, budget=200, seed=5),
}


def interrupted(search, store, after):
    """Run `search` until `after` steps are done, then interrupt it; whether it came that far."""
    steps = iter(range(after))

    def progress(_):
        if next(steps, None) is None:
            raise KeyboardInterrupt

    try:
        drive(search, store=store, progress=progress)
    except KeyboardInterrupt:
        return True
    return False


def same(ours, theirs):
    return all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("points", "costs", "evaluated"))


@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.parametrize("names", [["cycles"], ["cycles", "utilization"]])
def test_an_interrupted_search_goes_on_to_the_same_end(method, names, tmp_path):
    given = problem(SMALL, names=names)
    with mock.patch.object(Problem, "chunk", 64):
        whole = drive(MAKERS[method](given))
        store = Store(tmp_path / "state.npz", every_s=1e9, facts={"config": "{}"})
        assert interrupted(MAKERS[method](given), store, 0)
        for after in (0, 1):
            search = MAKERS[method](given)
            search.restore(store.load())
            assert 0 < search.spent < search.budget
            assert interrupted(search, store, after)
        search = MAKERS[method](given)
        search.restore(store.load())
        assert same(drive(search, store=store), whole)


@pytest.mark.parametrize("method", MAKERS)
def test_an_interrupt_in_the_midst_of_a_step_loses_that_step_alone(method, tmp_path):
    given = problem(SMALL)
    with mock.patch.object(Problem, "chunk", 64):
        whole = drive(MAKERS[method](given))
        store = Store(tmp_path / "state.npz", every_s=1e9, facts={})
        right, calls = given.objectives.costs, iter(range(2))

        def costs(machines):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return right(machines)

        with mock.patch.object(given.objectives, "costs", costs), pytest.raises(KeyboardInterrupt):
            drive(MAKERS[method](given), store=store)
        search = MAKERS[method](given)
        search.restore(store.load())
        assert search.spent > 0
        assert same(drive(search), whole)


def test_a_state_is_offered_after_every_step_and_written_when_it_is_time(tmp_path):
    given = problem(SMALL)
    store = Store(tmp_path / "state.npz", every_s=1e9, facts={})
    with mock.patch.object(Problem, "chunk", 64):
        drive(scan(given), store=store)
        assert not store.path.exists()
        store = Store(tmp_path / "state.npz", every_s=0, facts={"config": "text"})
        drive(scan(given), store=store)
    state = store.load()
    assert (state["evaluated"], state["config"]) == (len(given.space), "text")
    assert list(tmp_path.iterdir()) == [store.path]


def test_a_state_that_cannot_be_written_whole_leaves_the_former(tmp_path):
    store = Store(tmp_path / "state.npz", every_s=0, facts={})
    store.save({"evaluated": 1})

    def broken(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with mock.patch.object(np, "savez", broken), pytest.raises(KeyboardInterrupt):
        store.save({"evaluated": 2})
    assert store.load()["evaluated"] == 1


def test_seconds_add_up_over_interruptions(tmp_path):
    clock = iter([0.0, 10.0, 13.0, 13.0, 100.0, 105.0, 109.0]).__next__
    with mock.patch("octo_exp.hw.search.state.time.monotonic", clock):
        store = Store(tmp_path / "state.npz", every_s=0, facts={})
        store.begin()
        store.save({})
        again = Store(tmp_path / "state.npz", every_s=0, facts={})
        again.load()
        again.begin()
        assert again.seconds == 3 + 4


def test_a_state_that_is_none_is_one_line(tmp_path):
    path = tmp_path / "state.npz"
    assert Store(path, every_s=0, facts={}).load() is None
    path.write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(UserError, match="delete it to begin the search anew") as caught:
        Store(path, every_s=0, facts={}).load()
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "nowhere" / "state.npz", every_s=0, facts={}).save({})


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
        (0, "genetic", "search.budget must be a whole number greater than zero, or null, got 0"),
        (1.5, "random", "search.budget must be a whole number greater than zero, or null, got 1.5"),
        (True, "random", "search.budget must be a whole number"),
        ("x", "nsga2", "got 'x'"),
    ],
)
def test_a_wrong_budget_is_one_line(budget, method, line):
    with pytest.raises(UserError) as caught:
        checked_budget(budget, method, 777)
    assert line in str(caught.value)
