"""Which points no other point beats: exact Pareto fronts, ranks and crowding. All values are to be minimized.

A point dominates another if it is at most as large in every value and smaller in one. Equal points do not dominate each
other, so that all copies of a point are in the front or none.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Rows that are compared with the whole front at once: bounds the memory to so many rows times the front.
_CHUNK = 256


def non_dominated(values: FloatArray) -> NDArray[np.bool_]:
    """Mask [N] of the rows of `values` [N, K] that no other row dominates; n log n for K <= 2, all in all exact."""
    rows, places = np.unique(values, axis=0, return_inverse=True)
    # Rows come in lexicographic order, in which a row stands behind all that dominate it.
    if rows.shape[1] == 1:
        mask = np.arange(len(rows)) == 0
    elif rows.shape[1] == 2:
        before = np.minimum.accumulate(np.concatenate([[np.inf], rows[:, 1]]))[:-1]
        mask = rows[:, 1] < before
    else:
        mask = _mask_of_many(rows)
    return np.asarray(mask[places.reshape(-1)], np.bool_)


def ranks(values: FloatArray) -> NDArray[np.int64]:
    """Rank [N] of each row: 0 for the front, 1 for the front without rank 0, and so on; for one value its order."""
    if values.shape[1] == 1:
        return np.asarray(np.unique(values, return_inverse=True)[1].reshape(-1), np.int64)
    found = np.full(len(values), -1, np.int64)
    rank = 0
    while (found < 0).any():
        left = np.flatnonzero(found < 0)
        found[left[non_dominated(values[left])]] = rank
        rank += 1
    return found


def crowding(values: FloatArray, rank: NDArray[np.int64]) -> FloatArray:
    """Room [N] that a row has among those of its rank: the sum over values of the gap between its two neighbours.

    Gaps are shares of the rank's extent; the ends have infinite room (Deb et al., NSGA-II, 2002).
    """
    room = np.zeros(len(values))
    for level in np.unique(rank):
        members = np.flatnonzero(rank == level)
        for column in values[members].T:
            order = np.argsort(column, kind="stable")
            ordered = column[order]
            extent = ordered[-1] - ordered[0]
            if extent > 0:
                room[members[order[1:-1]]] += (ordered[2:] - ordered[:-2]) / extent
            room[members[order[[0, -1]]]] = np.inf
    return room


def _mask_of_many(rows: FloatArray) -> NDArray[np.bool_]:
    """Mask of distinct rows in lexicographic order, chunk by chunk against the front so far."""
    mask = np.zeros(len(rows), np.bool_)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        known = rows[:start][mask[:start]]
        alive = ~_is_dominated(chunk, known)
        # A row that is dominated inside the chunk is dominated by one that is not.
        alive[alive] = ~_is_dominated(chunk[alive], chunk[alive])
        mask[start : start + len(chunk)] = alive
    return mask


def _is_dominated(rows: FloatArray, by: FloatArray) -> NDArray[np.bool_]:
    """Mask of `rows` that some row of `by` dominates, where equal rows are one and the same."""
    not_above = np.ones((len(rows), len(by)), np.bool_)
    equal = np.ones((len(rows), len(by)), np.bool_)
    for column in range(rows.shape[1]):
        not_above &= by[:, column] <= rows[:, column, None]
        equal &= by[:, column] == rows[:, column, None]
    return np.asarray((not_above & ~equal).any(1), np.bool_)
