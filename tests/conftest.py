"""Fixtures for every room: quiet threads, fixed seeds, the data folder."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# The Triton interpreter must be chosen before Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Small tensors: a second thread costs more in waiting than it gives, above all beside a second worker.
torch.set_num_threads(1)

# No property test depends on time or load, and the default run draws the same examples on every machine.
QUIET = {"deadline": None, "print_blob": True, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", derandomize=True, **QUIET)
settings.register_profile("random", derandomize=False, **QUIET)
settings.load_profile("random" if os.environ.get("OCTO_RANDOM_TESTS") == "1" else "fixed")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    # Modules and collected tests live to the end; looking through them takes 0.3 s, and every run ends in `gc.collect`.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def data_dir() -> Path:
    folder = os.environ.get("OCTO_DATA_DIR")
    if not folder:
        pytest.skip("OCTO_DATA_DIR is unset: no real data sets on this machine")
    return Path(folder)
