from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octo_exp.hw.search import pareto
from octo_exp.hw.search.pareto import crowding, non_dominated, ranks


def by_definition(values):
    """Row i is in the front unless some row is nowhere above it and somewhere below it."""
    return np.array([not any((row <= mine).all() and (row < mine).any() for row in values) for mine in values], bool)


# Few distinct numbers, so that ties and duplicates are the rule.
@st.composite
def tables(draw):
    count, columns = draw(st.integers(1, 65)), draw(st.integers(1, 4))
    numbers = draw(st.lists(st.integers(-3, 4), min_size=count * columns, max_size=count * columns))
    return np.array(numbers, float).reshape(count, columns)


@given(tables(), st.sampled_from([1, 7, 256]))
@example(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 2.0], [1.0, 1.0]]), 256)
def test_the_front_is_that_of_the_definition(values, chunk):
    with mock.patch.object(pareto, "_CHUNK", chunk):
        mask = non_dominated(values)
    assert np.array_equal(mask, by_definition(values))


@pytest.mark.parametrize("count", [1, 7, 16, 63, 65, 600])
@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_the_front_of_random_floats_is_that_of_the_definition(count, columns):
    values = np.random.default_rng(count).normal(size=(count, columns)).round(1)
    assert np.array_equal(non_dominated(values), by_definition(values))


def test_a_front_may_be_everything_or_one_point():
    line = np.arange(1000.0)
    assert non_dominated(np.stack([line, -line], 1)).all()
    assert non_dominated(np.stack([line, -line, 0 * line], 1)).all()
    assert np.flatnonzero(non_dominated(np.stack([line, line, line], 1))).tolist() == [0]


@given(tables())
def test_ranks_peel_front_by_front(values):
    rank, left = ranks(values), np.ones(len(values), bool)
    for level in range(int(rank.max()) + 1):
        front = np.zeros(len(values), bool)
        front[left] = by_definition(values[left])
        assert np.array_equal(rank == level, front)
        left &= ~front
    assert not left.any()


def test_room_is_the_gap_between_neighbours_of_the_same_rank():
    values = np.array([[0.0, 8.0], [1.0, 4.0], [3.0, 2.0], [4.0, 0.0], [9.0, 9.0]])
    room = crowding(values, np.array([0, 0, 0, 0, 1]))
    assert room.tolist() == [np.inf, 3 / 4 + 6 / 8, 3 / 4 + 4 / 8, np.inf, np.inf]
