"""Every experiment names its command, and the experiment runs."""

import shlex

import pytest

from octo_exp.cli import check_arguments
from octo_exp.run import run
from tests.configs import CONF, composed, options
from tests.mcu.helpers import model_file


@pytest.mark.parametrize("name", options("experiment"))
def test_the_command_stands_below_the_package_header(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    words = shlex.split(lines[1])
    assert words[:3] == ["#", "python", "train.py"]
    assert f"experiment={name}" in words
    check_arguments(words[3:], config_dir=CONF)


@pytest.mark.parametrize("name", options("experiment"))
def test_the_experiment_runs(name, tmp_path, request):
    if composed(f"experiment={name}").data.name != "digits":
        request.getfixturevalue("data_dir")
    settings = ["trainer=debug", "trainer.max_epochs=1", "logger=csv", "data.limit_train=200", "data.limit_test=20"]
    if "path" in composed(f"experiment={name}").model:
        settings.append(f"model.path={model_file('mcunet-5fps')}")
    results = run(composed(f"experiment={name}", *settings, save_dir=tmp_path))
    assert 0 <= results["test/acc"] <= 1
    assert (tmp_path / "results.json").is_file()
