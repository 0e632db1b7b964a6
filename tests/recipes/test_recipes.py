"""Each recipe of CONTRIBUTING.md, laid into a copy of this tree, leaves the tests green that its kind has."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.recipes.helpers import recipes, tree

RECIPES = recipes()
# Recipe -> the tests that read its folder: (files with a case of each option of its kind, the suites of its rooms).
_FORMS = (
    ("tests/nn/test_layers.py", "tests/tracing/test_memory.py"),
    ("tests/quant", "tests/nn", "tests/tracing", "tests/facade"),
)
_MACHINES = ("tests/hw", "tests/runs/callbacks", "tests/sweeps")
SUITES = {
    "scheme": _FORMS,
    "clip form": _FORMS,
    "quantiser form": _FORMS,
    "model": (
        ("tests/models/test_models.py", "tests/graph/calibrate/test_graph.py"),
        ("tests/models", "tests/graph/calibrate", "tests/tracing"),
    ),
    "data set": (("tests/data/test_data_configs.py", "tests/data/test_own_selections.py"), ("tests/data",)),
    "accelerator": (("tests/hw/test_profile.py",), _MACHINES),
    "energy table": (("tests/hw/test_energy_tables.py",), _MACHINES),
    "export format": (
        ("tests/exports/test_evidence.py", "tests/exports/test_publish.py"),
        ("tests/exports", "tests/facade"),
    ),
    "update rule": (("tests/graph/update/test_configs.py",), ("tests/graph/update", "tests/tracing")),
    "experiment": ((), ("tests/config", "tests/cli")),
}
# Those that look at every file, or at every option of every group.
WHOLE = ("tests/test_arrows.py", "tests/test_configs.py", "tests/test_experiments.py", "tests/test_trust.py")
# Large networks, with which every pair of options is tried as well: the slow test has them.
LARGE = "alexnet or mobilenet or resnet or vgg"
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "VIRTUAL_ENV", "PYTHONPATH", "NUMBA_CACHE_DIR")


def stems(names: Sequence[str]) -> set[str]:
    return {Path(path).stem for name in names for path in RECIPES[name]}


def suite(folder: Path, tests: Sequence[str], *options: str) -> list[str]:
    """Run tests in a tree; return the names of those that passed. What fails there is shown, and fails here."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"--junitxml={report}"]
    # Without data sets, graphs and a run of the user's: what a newcomer has.
    environment = {key: os.environ[key] for key in KEPT if key in os.environ}
    done = subprocess.run(
        [*command, *options, *dict.fromkeys(tests)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cases = ElementTree.parse(report).iter("testcase")
    return [case.get("name", "") for case in cases if case.find("skipped") is None]


def test_every_kind_of_the_table_has_a_recipe_of_a_file_and_a_yaml():
    assert set(RECIPES) == set(SUITES)
    for name, files in RECIPES.items():
        kinds = [Path(path).suffix for path in files]
        assert kinds in ([".yaml"], [".py"], [".py", ".yaml"]), name
    assert list(RECIPES["scheme"]) == ["conf/quant/mine.yaml"]


# Kinds that need no network: their cases take a second.
LIGHT = ("accelerator", "energy table")


@pytest.mark.parametrize("together", [LIGHT, pytest.param(tuple(RECIPES), marks=pytest.mark.slow)], ids=len)
def test_with_recipes_at_once_their_cases_pass(together, tmp_path):
    folder = tree(tmp_path / "tree", together)
    names = stems(together)
    chosen = f"({' or '.join(sorted(names))}) and not ({LARGE})"
    whole = () if together is LIGHT else WHOLE
    passed = suite(folder, [*whole, *(test for name in together for test in SUITES[name][0])], "-k", chosen)
    for name in names:
        assert any(re.search(rf"(?<![a-z]){name}(?![a-z])", case) for case in passed), f"no test has a case of {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_alone_leaves_the_suites_of_its_rooms_green(name, tmp_path):
    few, rooms = SUITES[name]
    suite(tree(tmp_path / "tree", [name]), [*WHOLE, *few, *rooms])
