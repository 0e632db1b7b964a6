"""Fixtures for every room: quiet threads, fixed seeds, the data folder."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from octo_exp.base.files import whole_file
from octo_exp.runs import cost_plots
from tests import shortcuts

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

shortcuts.install()

ROOT = Path(__file__).resolve().parent.parent
# Where tests need no run: a fifth of the suite's time, `pytest -m quick`.
QUICK = ("base", "cli", "graph/integers", "hw", "kernels", "nn", "quant", "tracing")
QUICK_FILES = ("test_arrows.py", "test_commands.py", "test_numerics.py", "test_trust.py")
# Files whose tests look at pictures.
DRAWING = ("test_plots.py", "test_report.py", "test_full_disk.py", "test_run_full_disk.py", "test_homes.py")
draw = cost_plots._save
_drawn: list[bytes] = []


def is_quick(path: Path) -> bool:
    """Whether a file's tests need no run."""
    return any(path.is_relative_to(ROOT / "tests" / place) for place in (*QUICK, *QUICK_FILES))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Importing the others would take a third of the time.
    others = config.option.markexpr == "quick" and collection_path.name.startswith("test_")
    return True if others and collection_path.is_file() and not is_quick(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    assert all((ROOT / "tests" / place).exists() for place in (*QUICK, *QUICK_FILES))
    for item in items:
        apart = any(item.get_closest_marker(name) for name in ("slow", "gpu", "optional"))
        if not apart and is_quick(item.path):
            item.add_marker("quick")


def pytest_collection_finish() -> None:
    # Modules and collected tests live to the end; looking through them takes 0.3 s, and every run ends in `gc.collect`.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _drawn_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw a run's cost figure once a process: it takes a third of a small run's time. Its own tests draw all."""
    if request.node.path.name not in DRAWING:
        monkeypatch.setattr(cost_plots, "_save", _saved_again)


def _saved_again(figure: Any, path: Path, *, dpi: int) -> None:
    if not _drawn:
        draw(figure, path, dpi=dpi)
        _drawn.append(path.read_bytes())
    with whole_file(path, remedy="as the run's own") as file:
        file.write(_drawn[0])


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def data_dir() -> Path:
    folder = os.environ.get("OCTO_DATA_DIR")
    if not folder:
        pytest.skip("OCTO_DATA_DIR is unset: no real data sets on this machine")
    return Path(folder)
