"""The points of a design space that were priced, and of too many the best and the Pareto front."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from octo_exp.hw.search.pareto import non_dominated
from octo_exp.hw.search.state import State

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Distinct points that were priced: all of them while they are few, else the best and the Pareto front.

    Attributes:
        points: [F], in the order of pricing.
        costs: [F, K].
        evaluated: number of points that were ever added.
        limit: points that are kept in any case; beyond, the archive is pruned.
        top: points, the first by their costs in order, that pruning keeps beside the front.

    """

    points: IntArray
    costs: FloatArray
    evaluated: int
    limit: int
    top: int

    @classmethod
    def empty(cls, objectives: int, *, limit: int, top: int) -> "Archive":
        """Return an archive of nothing."""
        return cls(points=np.empty(0, np.int64), costs=np.empty((0, objectives)), evaluated=0, limit=limit, top=top)

    def plus(self, points: IntArray, costs: FloatArray) -> "Archive":
        """Return the archive with further points, none of which it has seen."""
        grown = replace(
            self,
            points=np.concatenate([self.points, points]),
            costs=np.concatenate([self.costs, costs]),
            evaluated=self.evaluated + len(points),
        )
        return grown.pruned() if len(grown.points) > self.limit else grown

    @property
    def is_complete(self) -> bool:
        """Whether every point that was priced is still there."""
        return self.evaluated <= self.limit

    def order(self) -> IntArray:
        """Positions by first cost, then the others, then point."""
        return np.lexsort((self.points, *self.costs.T[::-1]))

    def front(self) -> "Archive":
        """Return the points that none dominates, by order; for one objective the best and all its equals."""
        order = self.order()
        kept = order[non_dominated(self.costs[order])]
        return replace(self, points=self.points[kept], costs=self.costs[kept])

    def best(self, count: int) -> "Archive":
        """Return the first points by order."""
        kept = self.order()[:count]
        return replace(self, points=self.points[kept], costs=self.costs[kept])

    def pruned(self) -> "Archive":
        """Return the front and the `top` points, in the order of pricing."""
        kept = non_dominated(self.costs)
        kept[self.order()[: self.top]] = True
        return replace(self, points=self.points[kept], costs=self.costs[kept])

    def state(self) -> State:
        """Arrays for `restored`."""
        return {"points": self.points, "costs": self.costs, "evaluated": self.evaluated}

    def restored(self, state: State) -> "Archive":
        """Return the archive of that state."""
        return replace(self, points=state["points"], costs=state["costs"], evaluated=int(state["evaluated"]))
