"""The state of a search: interrupted, it goes on to the same end."""

from unittest import mock

import numpy as np
import pytest

from octo_exp.base.errors import UserError
from octo_exp.hw.search.scan import Problem, drive
from octo_exp.hw.search.state import Store
from tests.hw.search_helpers import SMALL, genetic, problem, scan

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
