"""Every experiment names its command, and the experiment runs."""

import shlex

import pytest
from hydra.utils import instantiate

from octo_exp.config import check_arguments
from octo_exp.runs.run import run
from tests.configs import CONF, composed, options
from tests.graph.helpers import model_file


@pytest.mark.parametrize("name", options("experiment"))
def test_the_command_stands_below_the_package_header(name):
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    words = shlex.split(lines[1])
    assert words[:3] == ["#", "python", "train.py"]
    assert f"experiment={name}" in words
    check_arguments(words[3:], config_dir=CONF)


def test_the_lenet_of_the_course_project_is_as_it_is_there():
    cfg = composed("experiment=lenet5_ptq")
    net = instantiate(cfg.model, _convert_="all")
    kinds = [type(layer).__name__ for layer in (*net.features, *net.classifier)]
    block = ["Conv2d", "ReLU", "AvgPool2d"]
    assert kinds == [*block, *block, "Conv2d", "Linear", "Linear"]
    optimizer = instantiate(cfg.optim.optimizer)(net.parameters())
    schedule = instantiate(cfg.optim.scheduler)(optimizer)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"], cfg.data.batch_size) == (0.001, 0.9, 32)
    assert not optimizer.defaults["nesterov"]
    assert not optimizer.defaults["weight_decay"]
    assert (type(schedule).__name__, schedule.step_size, schedule.gamma, cfg.optim.interval) == (
        "StepLR",
        10,
        0.5,
        "epoch",
    )
    assert (list(cfg.data.mean), list(cfg.data.std)) == ([0], [1])
    assert cfg.callbacks.curves


# The first is the README's own command, the second it on other data.
_LONG = ("digits_vgg11", "mnist_vgg11")
_EXPERIMENTS = [pytest.param(n, marks=pytest.mark.slow) if n in _LONG else n for n in options("experiment")]


@pytest.mark.parametrize("name", _EXPERIMENTS)
def test_the_experiment_runs(name, tmp_path, request):
    if composed(f"experiment={name}").data.name != "digits":
        request.getfixturevalue("data_dir")
    settings = ["trainer=debug", "trainer.max_epochs=1", "logger=csv", "data.limit_train=200", "data.limit_test=20"]
    if "path" in composed(f"experiment={name}").model:
        settings.append(f"model.path={model_file('mcunet-5fps')}")
    results = run(composed(f"experiment={name}", *settings, save_dir=tmp_path))
    assert 0 <= results["test/acc"] <= 1
    assert (tmp_path / "results.json").is_file()
