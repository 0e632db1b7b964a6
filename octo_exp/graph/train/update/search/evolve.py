"""Evolutionary search of a scheme, as in On-Device Training Under 256KB Memory (NeurIPS 2022), section 3.2.

Gains and costs are known numbers here, so that a search takes seconds: one that was cut off is run again.
"""

from dataclasses import dataclass
from random import Random

from octo_exp.base.errors import UserError
from octo_exp.graph.train.update.search.problem import Choice, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Evolution:
    """Genes are the entries of a choice; the fittest of parents and children survive. Deterministic by `seed`.

    population: choices that survive a generation, and children of one.
    generations: how often.
    crossover: probability that a child takes each gene from either of two parents, and not all from one.
    mutation: genes of a child that are drawn anew, on average; one at least.
    """

    population: int
    generations: int
    crossover: float
    mutation: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse counts below 1 and rates out of range."""
        for name in ("population", "generations"):
            if getattr(self, name) < 1:
                raise UserError(f"update.search.solver.{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.crossover <= 1:
            raise UserError(f"update.search.solver.crossover={self.crossover} must be a probability, 0 to 1")
        if not self.mutation >= 0:
            raise UserError(f"update.search.solver.mutation={self.mutation} must be 0 or more")

    def __call__(self, problem: Problem) -> Choice:
        """Return the fittest choice found; it fits the budget."""
        rng = Random(self.seed)
        sizes = [len(problem.biases), *map(len, problem.weights)]
        drawn = [[rng.randrange(size) for size in sizes] for _ in range(self.population)]
        parents = self._fittest(problem, [repaired(problem, genes, rng) for genes in drawn])
        for _ in range(self.generations):
            children = [self._child(problem, parents, sizes, rng) for _ in range(self.population)]
            parents = self._fittest(problem, parents + children)
        return parents[0]

    def _fittest(self, problem: Problem, choices: list[Choice]) -> list[Choice]:
        """The distinct ones by gain, of equal gain those that need less."""
        distinct = dict.fromkeys(choices)
        return sorted(distinct, key=lambda c: (-problem.gain(c), problem.bits(c)))[: self.population]

    def _child(self, problem: Problem, parents: list[Choice], sizes: list[int], rng: Random) -> Choice:
        mother, father = rng.choice(parents), rng.choice(parents)
        crossed = rng.random() < self.crossover
        genes = [f if crossed and rng.random() < 0.5 else m for m, f in zip(mother, father, strict=True)]
        one, rate = rng.randrange(len(genes)), self.mutation / len(genes)
        for place, size in enumerate(sizes):
            if place == one or rng.random() < rate:
                genes[place] = rng.randrange(size)
        return repaired(problem, genes, rng)


def repaired(problem: Problem, genes: list[int], rng: Random) -> Choice:
    """A choice at the budget: genes lowered one by one until they fit, then weights raised where there is room."""
    genes = _covered(genes)
    while problem.bits(tuple(genes)) > problem.budget_bits:
        place = rng.choice([place for place, gene in enumerate(genes) if gene])
        genes[place] -= 1
        genes = _covered(genes)
    return _filled(problem, genes, rng)


def _covered(genes: list[int]) -> list[int]:
    """Genes with no weights for the convolutions before the last n_bias."""
    frozen = len(genes) - 1 - genes[0]
    return [genes[0], *[0] * frozen, *genes[1 + frozen :]]


def _filled(problem: Problem, genes: list[int], rng: Random) -> Choice:
    """In random order each convolution takes its best option that still fits."""
    room = problem.budget_bits - problem.bits(tuple(genes))
    for place in rng.sample(range(len(genes) - genes[0], len(genes)), genes[0]):
        options = problem.weights[place - 1]
        room += options[genes[place]].bits
        fitting = [i for i, option in enumerate(options) if option.bits <= room]
        genes[place] = max(fitting, key=lambda i: options[i].gain)
        room -= options[genes[place]].bits
    return tuple(genes)
