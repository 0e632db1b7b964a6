"""NSGA-II by Optuna: its seed, its journal, and where it is not installed."""

import sys

import numpy as np
import pytest

from octo_exp.base.errors import ConfigError
from octo_exp.cli.dse.nsga2 import JOURNAL, Nsga2
from octo_exp.hw.search.objectives import Objectives
from octo_exp.hw.search.scan import Problem, drive
from octo_exp.hw.search.space import Space
from tests.hw.helpers import gemm, machine, workload
from tests.sweeps.dse_helpers import searched


def nsga2(tmp_path, *, names=("cycles",), budget=230, seed=0, **constraints):
    axes = {"rows": {"from": 1, "to": 64}, "cols": {"from": 1, "to": 64}, "dataflow": ["os", "ws", "is"]}
    step = Objectives(names, workload(gemm(), gemm(63, 65, 16)), convention="exact", energy=None)
    return Nsga2(Problem(Space(machine(), axes, constraints), step), budget=budget, seed=seed, folder=tmp_path)


def test_nsga2_is_decided_by_its_seed_and_prices_feasible_designs(tmp_path):
    found = [drive(nsga2(tmp_path, seed=seed, processing_elements={"max": 256})) for seed in (0, 0, 1)]
    assert np.array_equal(found[0].points, found[1].points)
    assert not np.array_equal(found[0].points, found[2].points)
    assert 50 < len(set(found[0].points)) == found[0].evaluated <= 230
    assert found[0].points.min() >= 0


def test_every_generation_of_nsga2_has_a_seed_of_its_own(tmp_path, monkeypatch):
    import optuna

    right, seeds = optuna.samplers.NSGAIISampler, []

    def sampler(*, seed, **given):
        seeds.append(seed)
        return right(seed=seed, **given)

    monkeypatch.setattr(optuna.samplers, "NSGAIISampler", sampler)
    drive(nsga2(tmp_path, seed=0))
    drive(nsga2(tmp_path, seed=1))
    # 230 trials in generations of 50.
    assert len(set(seeds)) == len(seeds) == 2 * 5


def test_nsga2s_journal_is_optunas_own(tmp_path):
    import optuna

    search = nsga2(tmp_path, names=("cycles", "processing_elements"), processing_elements={"max": 256})
    archive = drive(search)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    study = optuna.load_study(study_name="design space", storage=optuna.storages.JournalStorage(backend))
    assert [trial.number for trial in study.trials] == list(range(230))
    # Its front holds feasible designs alone, and those are ours.
    theirs = {tuple(trial.values) for trial in study.best_trials}
    assert theirs == set(map(tuple, archive.front().costs))


def test_nsga2_without_optuna_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs Optuna: pip install 'octo-exp\[search\]'"):
        searched(tmp_path, "search.method=nsga2")
