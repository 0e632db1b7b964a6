"""The best choice there is, by dynamic programming over the convolutions from the last to the first."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

from octo_exp.graph.train.update.search.problem import Choice, Problem


class _Partial(NamedTuple):
    """Weights of the last convolutions: their bits and gain, and their places as nested pairs (place, later ones)."""

    bits: int
    gain: float
    places: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """Finds the optimum; with gains that are shares of some hundred images in milliseconds."""

    def __call__(self, problem: Problem) -> Choice:
        """Return the choice of largest gain, of equal ones the one of fewest biases."""
        front, best = [_Partial(0, 0.0, None)], (-float("inf"), 0, None)
        for n_bias, bias in enumerate(problem.biases):
            if n_bias:
                front = _extended(front, problem, -n_bias)
            fitting = bisect_right(front, problem.budget_bits - bias.bits, key=lambda partial: partial.bits)
            # Gain grows with bits along a front, so the last that fits is the best.
            weights = front[fitting - 1]
            if weights.gain + bias.gain > best[0]:
                best = (weights.gain + bias.gain, n_bias, weights.places)
        _, n_bias, places = best
        chosen: list[int] = []
        while places is not None:
            place, places = places
            chosen.append(place)
        return (n_bias, *[0] * (len(problem.weights) - n_bias), *chosen)


def _extended(front: list[_Partial], problem: Problem, conv: int) -> list[_Partial]:
    """Every partial with every option of one more convolution, those left out that another one beats."""
    longer = [
        _Partial(partial.bits + option.bits, partial.gain + option.gain, (place, partial.places))
        for partial in front
        for place, option in enumerate(problem.weights[conv])
        if partial.bits + option.bits <= problem.budget_bits
    ]
    longer.sort(key=lambda partial: (partial.bits, -partial.gain))
    kept = longer[:1]
    for partial in longer[1:]:
        if partial.gain > kept[-1].gain:
            kept.append(partial)
    return kept
