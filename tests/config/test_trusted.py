"""What Hydra itself would call is looked at on the command line, before Hydra starts and without importing torch."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from octo_exp.base.errors import ConfigError
from octo_exp.config import arguments, check_arguments
from octo_exp.config.options import ConfigSpace
from octo_exp.config.trust import check_targets

SPACES: dict[str, ConfigSpace] = {}


@pytest.fixture(autouse=True)
def _in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)

    def space_of(**where: Any) -> ConfigSpace:
        where["lines"] = [line for line in where["lines"] if "searchpath" in line]
        key = repr(sorted(where.items()))
        if key not in SPACES:
            SPACES[key] = ConfigSpace(**where)
        return SPACES[key]

    monkeypatch.setattr(arguments, "ConfigSpace", space_of)


@pytest.mark.parametrize(
    "line",
    [
        "+hydra.callbacks.x={_target_:os.system,command:'true'}",
        "+hydra.callbacks.x._target_=my_package.X",
        "hydra.callbacks.summary._target_=torch.hub.load",
        "hydra.launcher._target_=subprocess.run",
        "hydra.job_logging.handlers.file.class=os.system",
        "hydra.hydra_logging.handlers.console.class=logging.os.system",
    ],
)
def test_what_hydra_would_call_is_refused(line: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name, *rest: imported.append(name) or real(name, *rest))
    with pytest.raises(ConfigError, match="was not run") as caught:
        check_arguments([line], config_dir=project / "conf")
    assert str(caught.value).startswith(line.lstrip("+").partition("=")[0])
    assert "\n" not in str(caught.value)
    assert not {"torch", "lightning", "my_package"} & {name.partition(".")[0] for name in imported}


@pytest.mark.parametrize(
    "line",
    [
        "+hydra.callbacks.x._target_=hydra.experimental.callbacks.LogJobReturnCallback",
        "hydra.job_logging.handlers.file.class=logging.handlers.WatchedFileHandler",
        "hydra.job_logging.handlers.console.stream=ext://sys.stdout",
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=hydra_debug",
        "trust=[my_package]",
    ],
)
def test_what_hydra_may_call_passes(line: str, project: Path) -> None:
    check_arguments([line], config_dir=project / "conf")


@pytest.mark.parametrize("log", ["job_logging", "hydra_logging"])
@pytest.mark.parametrize(
    ("key", "node"),
    [
        ("handlers.x.()", {"handlers": {"x": {"()": "logging.os.system", "command": "true"}}}),
        ("handlers.x.class", {"handlers": {"x": {"class": "logging.Formatter"}}}),
        ("handlers.x.queue", {"handlers": {"x": {"class": "logging.handlers.QueueHandler", "queue": "os.abort"}}}),
        ("handlers.x.queue.()", {"handlers": {"x": {"queue": {"()": "subprocess.run", "args": "true"}}}}),
        ("handlers.x.listener", {"handlers": {"x": {"listener": "subprocess.run"}}}),
        ("formatters.x.()", {"formatters": {"x": {"()": "subprocess.run"}}}),
        ("filters.x.()", {"filters": {"x": {"()": "subprocess.run"}}}),
        ("handlers.x.stream", {"handlers": {"x": {"class": "logging.StreamHandler", "stream": "ext://os.environ"}}}),
        ("root.handlers.0", {"root": {"handlers": ["ext://this"]}}),
    ],
)
def test_what_logging_would_call_is_refused(log: str, key: str, node: dict[str, Any]) -> None:
    for cfg in ({"hydra": {log: node}}, OmegaConf.create({"hydra": {log: node}})):
        with pytest.raises(ConfigError, match="was not run") as caught:
            check_targets(cfg)
        assert str(caught.value).startswith(f"hydra.{log}.{key}=")


def test_what_logging_may_call_passes() -> None:
    handlers = {"x": {"class": "rich.logging.RichHandler"}, "y": {"()": "logging.handlers.MemoryHandler"}}
    check_targets(
        {"hydra": {"job_logging": {"handlers": handlers, "formatters": {"z": {"class": "logging.Formatter"}}}}}
    )


@pytest.mark.parametrize("key", ["sampler._target_", "custom_search_space"])
def test_what_a_sweeper_would_call_is_refused(key: str) -> None:
    cfg = OmegaConf.create()
    OmegaConf.update(cfg, f"hydra.sweeper.{key}", "os.system")
    with pytest.raises(ConfigError, match=f"^hydra.sweeper.{key}=os.system was not run"):
        check_targets(cfg)


@pytest.mark.parametrize(
    ("text", "chosen", "words"),
    [
        (
            "trust: [mine]",
            "claim,evil",
            "trust stands in a yaml, where it does not count; ",
        ),
        ("hydra: {sweeper: {params: {trust: '[],[mine]'}}}", "evil", "trust does not count in a yaml"),
        ("hydra: {callbacks: {x: {_target_: os.system}}}", "claim,evil", "os.system is of Python's own library"),
    ],
)
def test_a_yaml_does_not_vouch_for_itself(text: str, chosen: str, words: str, project: Path, tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        check_arguments(["-m", "-cd", f"{tmp_path / 'conf'}", f"experiment={chosen}"], config_dir=project / "conf")
    assert words in str(caught.value)


def test_a_pickled_job_is_not_run_again(project: Path) -> None:
    with pytest.raises(ConfigError, match="loads a pickle"):
        check_arguments(["--experimental-rerun", "config.pickle"], config_dir=project / "conf")
