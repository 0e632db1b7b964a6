"""Optuna's NSGA-II on a design space: what a library's search finds beside our own.

A trial may repeat a design or lie outside of the limits (Optuna is told by how much, and prefers those inside); each
counts for the budget, as it does for Optuna.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from octo_exp.base.errors import UserError
from octo_exp.base.files import write_text
from octo_exp.hw.search.archive import Archive
from octo_exp.hw.search.scan import Problem
from octo_exp.hw.search.state import State

JOURNAL = "optuna.journal"
_POPULATION = 50


class Nsga2:
    """The sampler at work, a generation a step; deterministic by its seed.

    The study is a journal in Optuna's own format. It is a part of the state, and a file in `folder` when all trials are
    told: `optuna.storages.journal.JournalFileBackend` reads it.

    Args:
        problem: what is searched.
        budget: trials.
        seed: of every draw.
        folder: where the journal is written at the end.

    Raises:
        UserError: Optuna is not installed.

    """

    def __init__(self, problem: Problem, *, budget: int, seed: int, folder: Path) -> None:
        self.budget = budget
        self.spent = 0
        self.archive = Archive.empty(len(problem.objectives.chosen), limit=budget, top=0)
        self._problem = problem
        self._seed = seed
        self._optuna = _optuna()
        self._path = folder / JOURNAL
        self._lines: list[str] = []
        self._study = self._opened()

    def step(self) -> None:
        """Ask for a generation's designs, price the feasible ones together, and tell the outcome."""
        # A sampler a generation, seeded by where it begins: a search that was interrupted draws what it would have.
        seed = int(np.random.SeedSequence([self._seed, self.spent]).generate_state(1)[0])
        self._study.sampler = self._optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=seed)
        trials = [self._study.ask() for _ in range(min(_POPULATION, self.budget - self.spent))]
        digits = np.array([self._digits(trial) for trial in trials])
        # Optuna wants a value of infeasible designs too: any machine has one, inside the limits or not.
        costs = self._problem.objectives.costs(self._problem.space.machines(digits))
        excess = self._problem.space.excess(digits)
        for trial, values, outside in zip(trials, costs.tolist(), excess.tolist(), strict=True):
            trial.set_constraint("limits", outside)
            self._study.tell(trial, values)
        points = self._problem.space.encode(digits)
        new = [index for index in _firsts(points) if points[index] not in self.archive.points]
        self.archive = self.archive.plus(points[new], costs[new])
        self.spent += len(trials)
        if self.spent == self.budget:
            write_text(self._path, "".join(self._lines))

    def state(self) -> State:
        """Return the archive, the number of trials, and the journal as bytes."""
        journal = np.frombuffer("".join(self._lines).encode(), np.uint8)
        return {**self.archive.state(), "trials": self.spent, "journal": journal}

    def restore(self, state: State) -> None:
        """Go on where the state was taken."""
        self.archive = self.archive.restored(state)
        self.spent = int(state["trials"])
        self._lines = state["journal"].tobytes().decode().splitlines(keepends=True)
        self._study = self._opened()

    def _opened(self) -> Any:
        """Return the study of the journal; a new one where the journal is empty."""
        optuna, lines = self._optuna, self._lines

        # Kept in memory: the file backend waits for the disk several times a trial. mypy sees no optional library.
        class Journal(optuna.storages.journal.BaseJournalBackend):  # type: ignore[name-defined, misc]
            def append_logs(self, logs: list[dict[str, Any]]) -> None:
                lines.extend(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)

            def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
                return map(json.loads, lines[log_number_from:])

        return optuna.create_study(
            storage=optuna.storages.JournalStorage(Journal()),
            study_name="design space",
            directions=["minimize"] * len(self._problem.objectives.chosen),
            load_if_exists=True,
        )

    def _digits(self, trial: Any) -> list[int]:
        space = self._problem.space
        digits = []
        for name, size, is_ordered in zip(space.axes, space.sizes, space.is_ordered, strict=True):
            choose = trial.suggest_int(name, 0, size - 1) if is_ordered else None
            digits.append(trial.suggest_categorical(name, range(size)) if choose is None else choose)
        return digits


def _firsts(points: Any) -> list[int]:
    """Places of the first occurrence of each feasible point, in order."""
    seen: dict[int, int] = {}
    for index, point in enumerate(points.tolist()):
        if point >= 0:
            seen.setdefault(point, index)
    return list(seen.values())


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("search.method=nsga2 needs Optuna: pip install 'octo-exp[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
