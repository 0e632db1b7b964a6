"""Search of a design space: what all methods share, and the two that price a list of points, exhaustive and random.

A search goes on in steps, each one vectorized pricing. Between steps its state is a handful of arrays, from which
another one, made alike, goes on to the same result bit for bit.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from octo_exp.base.errors import UserError
from octo_exp.base.signals import Stopped
from octo_exp.hw.search.archive import Archive
from octo_exp.hw.search.objectives import Objectives
from octo_exp.hw.search.space import Space
from octo_exp.hw.search.state import State, Store

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Designs times GEMMs priced at once: what a processor's cache holds.
_CHUNK_PRICES = 2**15
_MOST_BY_DEFAULT = 100_000


class Problem:
    """A space and what is wanted of its machines: points [P] -> costs [P, K], all to be minimized.

    Raises:
        UserError: the space's machines cannot do the workload.

    """

    def __init__(self, space: Space, objectives: Objectives) -> None:
        self.space = space
        self.objectives = objectives
        # An axis gives a field to all machines, so that one of them speaks for all.
        objectives.check(space.profile(0, name=space.base.name))

    def __call__(self, points: IntArray) -> FloatArray:
        """Price points."""
        return self.objectives.costs(self.space.machines(self.space.decode(points)))

    def columns(self, archive: Archive) -> dict[str, list[Any]]:
        """Axes and figures of an archive's points, as they are written down."""
        return self.space.columns(archive.points) | self.objectives.columns(archive.costs)

    @property
    def chunk(self) -> int:
        """Points that are best priced at once."""
        return max(64, min(4096, _CHUNK_PRICES // max(1, len(self.objectives.workload.gemms))))


class Search(Protocol):
    """One method at work.

    Attributes:
        budget: what it may spend in all.
        archive: what was priced so far.

    """

    budget: int
    archive: Archive

    @property
    def spent(self) -> int:
        """How much of the budget is used."""

    def step(self) -> None:
        """Go on a little, by at least one."""

    def state(self) -> State:
        """Arrays, numbers and texts from which `restore` goes on; no later step changes them."""

    def restore(self, state: State) -> None:
        """Go on where the state was taken, by a search made alike."""


class Scan:
    """Prices a list of points, chunk by chunk: all of a space, or a sample without repetition.

    Args:
        problem: what is searched.
        sample: number of points, drawn evenly by `seed`; None for all.
        seed: of the sample.
        limit: points that are kept, see `Archive`.
        top: best points that are kept in any case.

    """

    def __init__(self, problem: Problem, *, sample: int | None, seed: int, limit: int, top: int) -> None:
        feasible = len(problem.space)
        self.archive = Archive.empty(len(problem.objectives.chosen), limit=limit, top=top)
        self.budget = feasible if sample is None else sample
        self._problem = problem
        self._drawn = None
        if sample is not None:
            self._drawn = np.random.default_rng(seed).choice(feasible, size=sample, replace=False)

    @property
    def spent(self) -> int:
        """Points that were priced."""
        return self.archive.evaluated

    def step(self) -> None:
        """Price the next chunk."""
        points = np.arange(self.spent, min(self.spent + self._problem.chunk, self.budget))
        points = points if self._drawn is None else self._drawn[points]
        self.archive = self.archive.plus(points, self._problem(points))
        if self.spent == self.budget and not self.archive.is_complete:
            self.archive = self.archive.pruned()

    def state(self) -> State:
        """Arrays for `restore`."""
        return self.archive.state()

    def restore(self, state: State) -> None:
        """Go on where the state was taken."""
        self.archive = self.archive.restored(state)


def drive(
    search: Search, *, store: Store | None = None, progress: Callable[[Search], None] = lambda search: None
) -> Archive:
    """Run a search to its end; `progress` is called after every step.

    Its state is offered to `store` after every step, and saved where the process is asked to end, be it in the midst of
    a step.
    """
    state = search.state()
    if store is not None:
        store.begin()
    try:
        while search.spent < search.budget:
            search.step()
            state = search.state()
            progress(search)
            if store is not None:
                store.offer(state)
    except (KeyboardInterrupt, Stopped):
        if store is not None:
            store.save(state)
        raise
    return search.archive


def checked_budget(budget: Any, method: str, feasible: int) -> int:
    """Return the points that a method prices: a tenth of the feasible ones (at most 100,000) where `budget` is None.

    Raises:
        UserError: no whole number > 0, or any number for the exhaustive search.

    """
    if method == "exhaustive":
        if budget is not None:
            raise UserError(
                f"search.budget={budget}: an exhaustive search prices all {feasible:,} points; "
                "write search.budget=null, or choose search.method=genetic, random or nsga2"
            )
        return feasible
    if budget is None:
        return min(max(1, feasible // 10), _MOST_BY_DEFAULT)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UserError(f"search.budget must be a whole number greater than zero, or null, got {budget!r}")
    return min(budget, feasible)
