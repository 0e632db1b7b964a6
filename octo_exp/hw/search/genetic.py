"""A genetic algorithm on axis indices, for spaces too large to price whole.

Parents win a tournament, children take each axis from either, mutate by small and by large steps and are brought back
inside the limits. What was priced is remembered, so that the budget counts distinct feasible points. Parents and
children compete by Pareto rank, then by room along the front (NSGA-II, Deb et al., 2002); with one objective the rank
is its order.
"""

import json

import numpy as np
from numpy.typing import NDArray

from octo_exp.hw.search.archive import Archive
from octo_exp.hw.search.pareto import crowding, ranks
from octo_exp.hw.search.scan import Problem
from octo_exp.hw.search.space import Space
from octo_exp.hw.search.state import State

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Parents: a share of the budget, within bounds.
_SHARE, _SMALLEST, _LARGEST = 20, 8, 64
_CROSSED = 0.9
_SMALL_STEPS = 0.5
# Of children: points drawn anew where so many turn out to be known.
_NEWCOMERS = 8
_CANDIDATES_AT_ONCE = 2**20


class Genetic:
    """The algorithm at work; deterministic by its seed.

    Args:
        problem: what is searched.
        budget: distinct feasible points that are priced, at most those of the space.
        seed: of every draw.

    """

    def __init__(self, problem: Problem, *, budget: int, seed: int) -> None:
        self.budget = budget
        self.archive = Archive.empty(len(problem.objectives.chosen), limit=budget, top=0)
        self._problem = problem
        self._rng = np.random.default_rng(seed)
        self._size = min(_LARGEST, max(_SMALLEST, budget // _SHARE))
        self._parents = np.empty(0, np.int64)
        self._parent_costs = np.empty((0, len(problem.objectives.chosen)))

    @property
    def spent(self) -> int:
        """Points that were priced."""
        return self.archive.evaluated

    def step(self) -> None:
        """Price one generation, and let it compete with its parents."""
        children = self._children() if len(self._parents) else self._drawn(self._size)
        children = children[: self.budget - self.spent]
        costs = self._problem(children)
        self.archive = self.archive.plus(children, costs)
        points = np.concatenate([self._parents, children])
        costs = np.concatenate([self._parent_costs, costs])
        kept = fitness_order(points, costs)[: self._size]
        self._parents, self._parent_costs = points[kept], costs[kept]

    def state(self) -> State:
        """Arrays and the generator's state for `restore`."""
        return {
            **self.archive.state(),
            "parents": self._parents,
            "parent_costs": self._parent_costs,
            "generator": json.dumps(self._rng.bit_generator.state),
        }

    def restore(self, state: State) -> None:
        """Go on where the state was taken."""
        self.archive = self.archive.restored(state)
        self._parents, self._parent_costs = state["parents"], state["parent_costs"]
        self._rng.bit_generator.state = json.loads(state["generator"])

    def _children(self) -> IntArray:
        """New points, best parents' first; where none is new, points drawn at random."""
        space, rng = self._problem.space, self._rng
        digits = space.decode(self._parents)
        mothers, fathers = digits[tournament(len(digits), (2, self._size), rng)]
        crossed = (rng.random((self._size, 1)) < _CROSSED) & (rng.random(mothers.shape) < 0.5)
        points = repaired(space, mutated(space, np.where(crossed, fathers, mothers), rng), rng)
        new = self._unknown(points[points >= 0])
        return new if len(new) >= _NEWCOMERS else np.concatenate([new, self._drawn(_NEWCOMERS, beside=new)])

    def _drawn(self, count: int, beside: IntArray | None = None) -> IntArray:
        """At least one and at most `count` unknown points, evenly over the feasible ones; none where none is left."""
        known = self.spent if beside is None else self.spent + len(beside)
        found = np.empty(0, np.int64)
        while not len(found) and known < len(self._problem.space):
            found = self._unknown(self._rng.integers(len(self._problem.space), size=count))
            found = found if beside is None else found[~np.isin(found, beside)]
        return found

    def _unknown(self, points: IntArray) -> IntArray:
        """The distinct ones that were not priced, in order of first occurrence."""
        first = np.sort(np.unique(points, return_index=True)[1])
        return points[first][~np.isin(points[first], self.archive.points)]


def tournament(count: int, shape: tuple[int, ...], rng: np.random.Generator) -> IntArray:
    """Places of winners among `count` that lie by fitness: of two drawn evenly the fitter, hence the smaller."""
    return np.asarray(rng.integers(count, size=(2, *shape)).min(axis=0))


def fitness_order(points: IntArray, costs: FloatArray) -> IntArray:
    """Positions from the fittest: by rank, then room, then point."""
    rank = ranks(costs)
    room = crowding(costs, rank) if costs.shape[1] > 1 else np.zeros(len(costs))
    return np.lexsort((points, -room, rank))


def mutated(space: Space, digits: IntArray, rng: np.random.Generator) -> IntArray:
    """Copy of digits [P, A] with one axis of each changed, and every other one with probability 1 / A.

    An axis with an order takes a step, half of them geometric (mostly 1 or 2), half of any size up to the axis's length
    with an even logarithm; another axis takes any other value.
    """
    count, axes = digits.shape
    sizes = np.array(space.sizes)
    changed = rng.random(digits.shape) < 1 / axes
    changed[np.arange(count), rng.integers(axes, size=count)] = True
    small = rng.geometric(0.5, digits.shape)
    large = np.floor(sizes ** rng.random(digits.shape)).astype(np.int64)
    step = np.where(rng.random(digits.shape) < _SMALL_STEPS, small, large)
    moved = np.clip(digits + step * rng.choice([-1, 1], digits.shape), 0, sizes - 1)
    other = (digits + rng.integers(1, np.maximum(sizes, 2), digits.shape)) % sizes
    return np.where(changed, np.where(space.is_ordered, moved, other), digits)


def repaired(space: Space, digits: IntArray, rng: np.random.Generator) -> IntArray:
    """Points [P] of digits [P, A]; an infeasible one moves along one axis to the nearest feasible value.

    Axes are tried in random order; -1 where none of them leads inside.
    """
    points = space.encode(digits)
    for axis in rng.permutation(digits.shape[1]):
        size = space.sizes[axis]
        outside = np.flatnonzero(points < 0)
        at_once = max(1, _CANDIDATES_AT_ONCE // size)
        for start in range(0, len(outside), at_once):
            places = outside[start : start + at_once]
            points[places] = _nearest(space, digits[places], int(axis))
    return points


def _nearest(space: Space, digits: IntArray, axis: int) -> IntArray:
    """For each row the feasible point that differs from it in `axis` alone, and least; -1 where there is none."""
    size = space.sizes[axis]
    candidates = np.repeat(digits[:, None, :], size, axis=1)
    candidates[:, :, axis] = np.arange(size)
    points = space.encode(candidates.reshape(-1, digits.shape[1])).reshape(-1, size)
    distance = np.where(points < 0, size, np.abs(np.arange(size) - digits[:, axis, None]))
    return np.asarray(points[np.arange(len(digits)), distance.argmin(axis=1)])
