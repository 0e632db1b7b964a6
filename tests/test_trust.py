"""What a config names is looked at before it is called: what has no business at its key is refused and never runs."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from torch import nn

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.bench import subjects
from octo_exp.cli.dse import search as dse
from octo_exp.cli.export import export
from octo_exp.config.trust import check_targets
from octo_exp.config.trust.objects import find, home
from octo_exp.exports.request import parse, profile_of
from octo_exp.exports.source import read_run
from octo_exp.runs.run import run
from tests.configs import CONF, compose_copy, composed
from tests.run_helpers import SMALL

HOSTILE = {
    "model": (
        "torch.os.system",
        "octo_exp.runs.run.Path.unlink",
        "torch.utils.collect_env.run",
        "torch.hub.load",
        "torch.load",
        "pathlib.Path.unlink",
        "builtins.eval",
        "subprocess.run",
        "functools.partial",
        "octo_exp.base.files.write_json",
        "octo_exp.runs.run.run",
        "octo_exp.runs.run.OmegaConf.load",
        "hydra.utils.instantiate",
        "lightning.LightningModule.load_from_checkpoint",
        "lightning.Trainer",
        "torch.optim.SGD",
        "torch.nn",
        "torch.nn.Linear.__init__.__globals__",
        "torch.nn.Nothing",
        "torch..nn",
        "",
    ),
    "data": ("torch.utils.data.DataLoader", "octo_exp.models.simplecnn.SimpleCNN"),
    "source": ("torch.hub.load",),
    "quant": ("octo_exp.quant.clipping.Ratio", "torch.nn.Linear"),
    "quant.clip": ("torch.nn.Linear", "octo_exp.hw.profile.HardwareProfile", "octo_exp.quant.rounding.Clock"),
    "quant.training.x": ("torch.hub.load",),
    "hw.mine": ("octo_exp.hw.energy.EnergyTable", "torch.os.system"),
    "energy": ("octo_exp.hw.profile.HardwareProfile",),
    "update": ("octo_exp.graph.train.update.selection.SparseUpdate",),
    "update.search.solver": ("torch.hub.load",),
    "optim.optimizer": ("torch.optim.lr_scheduler.StepLR", "torch.os.system"),
    "optim.scheduler": ("octo_exp.runs.lit.LitClassifier", "octo_exp.runs.lit.partial"),
    "callbacks.mine": ("lightning.pytorch.loggers.CSVLogger", "datetime.timedelta"),
    "callbacks.mine.every.0.deep": ("subprocess.run", "subprocess.Popen", "torch.hub.load"),
    "logger.mine": ("lightning.Callback",),
    "logger.mine.settings": ("lightning.pytorch.loggers.CSVLogger", "torch.nn.Linear"),
    "trainer": ("lightning.Callback",),
    "trainer.strategy": ("torch.os.system", "lightning.Callback"),
    "model.layer": ("torch.os.system", "torch.hub.load", "torch.optim.SGD"),
    "kernel": ("torch.hub.load",),
    "nowhere": ("torch.nn.Linear",),
    "hydra.callbacks.mine": (
        "hydra.utils.get_method",
        "hydra.main.functools.partial",
        "lightning.Callback",
        "os.system",
    ),
    "hydra.launcher": ("hydra.experimental.callback.Callback", "subprocess.run"),
    "hydra.sweeper": ("torch.os.system",),
    "hydra.job": ("hydra.experimental.callback.Callback",),
}
RIGHT = {
    "model": ("torch.nn.Linear", "octo_exp.graph.files.released.graph_file"),
    "model.layer": ("torch.nn.ReLU",),
    "optim.scheduler": ("torch.optim.lr_scheduler.StepLR", "torch.optim.lr_scheduler.ReduceLROnPlateau"),
    "callbacks.best.train_time_interval": ("datetime.timedelta",),
    "trainer.profiler": ("lightning.pytorch.profilers.SimpleProfiler",),
    "trainer.strategy": ("lightning.pytorch.strategies.DDPStrategy",),
    "update.search.solver": ("octo_exp.graph.train.update.search.Evolution",),
    "hydra.callbacks.pickle": ("hydra.experimental.callbacks.PickleJobInfoCallback",),
    "hydra.launcher": ("hydra._internal.core_plugins.basic_launcher.BasicLauncher",),
}


def at(key: str, target: Any) -> dict[str, Any]:
    """A config with one name; a number in the key is a place in a list."""
    node: Any = {"_target_": target}
    for part in reversed(key.split(".")):
        node = [node] if part.isdecimal() else {part: node}
    return node


def pairs(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(key, target) for key, targets in table.items() for target in targets]


@pytest.mark.parametrize(("key", "target"), pairs(HOSTILE))
@pytest.mark.parametrize("as_config", [False, True], ids=["dict", "DictConfig"])
def test_what_has_no_business_at_its_key_is_refused_in_one_line(key, target, as_config):
    cfg = at(key, target)
    with pytest.raises(ConfigError) as caught:
        check_targets(OmegaConf.create(cfg) if as_config else cfg)
    message = str(caught.value)
    assert message.startswith(f"{key}._target_={target} ")
    assert "\n" not in message
    assert "was not run" in message or "cannot be found" in message


@pytest.mark.parametrize(("key", "target"), pairs(RIGHT))
def test_what_belongs_at_its_key_passes(key, target):
    check_targets(at(key, target))


# own.yaml names nothing by itself.
OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml")) if path.stem != "own"]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_passes(group, option):
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    check_targets(node if group == "experiment" else {group: {option: node} if group == "hw" else node})


@pytest.mark.parametrize("name", ["train", "dse"])
def test_the_roots_pass_with_hydras_node(name):
    check_targets(OmegaConf.load(CONF / f"{name}.yaml"))
    check_targets(compose_copy(name))
    assert compose_copy(name).trust == []


def test_every_class_that_libraries_offer_has_the_home_that_it_says():
    for module in (torch.optim, torch.optim.lr_scheduler, torch.nn, lightning.pytorch.callbacks):
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        assert len(classes) > 5
        assert [cls for cls in classes if home(cls) is None] == []


# Names by way of interpolation.


def test_names_behind_interpolations_are_looked_at():
    for cfg in (
        {"model": {"_target_": "${a}.unlink"}, "a": "pathlib.Path"},
        {"model": "${a}", "a": {"_target_": "torch.hub.load"}},
        {"callbacks": {"x": {"y": ["${a}"]}}, "a": {"_target_": "octo_exp.quant.clipping.Ratio"}, "energy": "${a}"},
    ):
        with pytest.raises(ConfigError, match="was not run"):
            check_targets(OmegaConf.create(cfg))
    with pytest.raises(ConfigError, match=r"model._target_ cannot be resolved"):
        check_targets(OmegaConf.create({"model": {"_target_": "${nowhere}"}}))


def test_what_cannot_be_resolved_hides_nothing_beside_it():
    cfg = {"data": {"root": "${nowhere}", "classes": "???", "x": {"_target_": "torch.hub.load"}}}
    with pytest.raises(ConfigError, match=r"data.x._target_=torch.hub.load was not run"):
        check_targets(OmegaConf.create(cfg))


def test_a_config_without_an_end_is_refused():
    cfg = OmegaConf.create({"a": {"x": "${b}"}, "b": {"x": "${a}"}})
    with pytest.raises(ConfigError, match="levels"):
        check_targets(cfg)


# What says that it is another.


def test_a_class_that_lies_about_its_home_is_refused(monkeypatch):
    from octo_exp import models

    liar = type("Liar", (nn.Module,), {"__module__": "torch.nn"})
    monkeypatch.setattr(models, "Liar", liar, raising=False)
    with pytest.raises(ConfigError, match="where it comes from cannot be told"):
        check_targets(at("model", "octo_exp.models.Liar"))
    with pytest.raises(ConfigError, match="where it comes from cannot be told"):
        check_targets(OmegaConf.create(at("model", liar), flags={"allow_objects": True}))


def test_an_object_in_place_of_a_name_is_looked_at_too():
    check_targets(at("model", nn.Linear))
    with pytest.raises(ConfigError, match=r"posix.system is of Python's own library|nt.system"):
        check_targets(at("model", find("torch.os.system")))


# A package of the user's.

MINE = """
from pathlib import Path
from subprocess import run
import torch
from torch import hub
Path({mark!r}).write_text("imported")

class Net(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.layer = torch.nn.Linear(settings["image_size"] ** 2, settings["num_classes"])

    def forward(self, x):
        return self.layer(x.flatten(1))

class Other:
    pass

def make(**settings):
    return Net(**settings)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `mine_of_trust` that could be imported; the file that it writes then."""
    mark = tmp_path / "imported"
    folder = tmp_path / "path" / "mine_of_trust"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(MINE.format(mark=str(mark)))
    monkeypatch.syspath_prepend(str(folder.parent))
    importlib.invalidate_caches()
    yield mark
    sys.modules.pop("mine_of_trust", None)


def test_a_package_is_not_even_imported_before_it_is_trusted(mine):
    with pytest.raises(ConfigError) as caught:
        check_targets(at("model", "mine_of_trust.Net"))
    assert str(caught.value).endswith("mine_of_trust is not trusted; if you trust it, add trust=[mine_of_trust]")
    with pytest.raises(ConfigError, match=r"add trust=\[other,mine_of_trust\]$"):
        check_targets(at("model", "mine_of_trust.Net"), trust=["other"])
    assert not mine.exists()


@pytest.mark.parametrize("trust", ["mine_of_trust", ["mine_of_trust"], ["other", "mine_of_trust"]])
def test_trust_adds_a_package(trust, mine):
    for key, name in (("model", "Net"), ("model", "make"), ("model.layer", "Other"), ("data", "make")):
        check_targets(at(key, f"mine_of_trust.{name}"), trust=trust)
    check_targets({**at("model", "mine_of_trust.Net"), "trust": trust})


@pytest.mark.parametrize("name", ["Other", "Path.unlink", "run", "hub.load", "torch.os.system", "missing"])
def test_trust_holds_for_the_package_alone(name, mine):
    with pytest.raises(ConfigError, match=r"was not run|cannot be found"):
        check_targets(at("model", f"mine_of_trust.{name}"), trust=["mine_of_trust"])


@pytest.mark.parametrize("trust", ["os", ["builtins"], ["pathlib.Path"], ["a b"], [3], [""], [None]])
def test_what_may_not_be_trusted_is_said(trust):
    with pytest.raises(ConfigError, match=r"^trust: "):
        check_targets({}, trust=trust)


def test_trust_in_torch_opens_no_function_of_it():
    with pytest.raises(ConfigError, match="was not run"):
        check_targets(at("model", "torch.hub.load"), trust=["torch"])


# The doors: nothing that is refused has run.


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "victim"
    path.write_text("here")
    yield path
    assert path.read_text() == "here"


def hostile(cfg: Any, key: str, target: str, *arguments: str) -> Any:
    """The config with a node that would be called with these arguments."""
    with open_dict(cfg):
        OmegaConf.update(cfg, key, {"_target_": target, "_args_": list(arguments)}, merge=False, force_add=True)
    return cfg


CALLS = [
    ("model", "octo_exp.runs.run.Path.unlink"),
    ("data", "pathlib.Path.unlink"),
    ("optim.scheduler", "torch.os.remove"),
    ("callbacks.mine", "torch.os.remove"),
    ("callbacks.default.list", "torch.os.remove"),
    ("trainer.profiler", "torch.os.remove"),
]


@pytest.mark.parametrize(("key", "target"), CALLS)
def test_a_run_refuses(key, target, victim, tmp_path):
    cfg = hostile(composed(*SMALL, save_dir=tmp_path / "run"), key, target, str(victim))
    with pytest.raises(ConfigError, match="was not run"):
        run(cfg)
    assert not (tmp_path / "run").exists()


def test_a_run_looks_again_at_the_source_of_a_transfer(victim, tmp_path):
    cfg = composed(*SMALL, "data@source=fashion_mnist", save_dir=tmp_path / "run")
    with open_dict(cfg):
        cfg.source._target_ = "${data.sort}"
        cfg.source._args_ = [str(victim)]
        cfg.data.sort, cfg.source.sort = "octo_exp.data.ImageDataModule", "pathlib.Path.unlink"
    with pytest.raises(ConfigError, match=r"data._target_=pathlib.Path.unlink was not run"):
        run(cfg)


def test_a_run_trains_a_model_of_a_trusted_package(mine, tmp_path):
    settings = (*SMALL, "~callbacks.cost", "~callbacks.memory", "quant=fp32", "model._target_=mine_of_trust.Net")
    with pytest.raises(ConfigError, match=r"add trust=\[mine_of_trust\]"):
        run(composed(*settings, save_dir=tmp_path / "run"))
    assert not mine.exists()
    run(composed(*settings, "trust=mine_of_trust", save_dir=tmp_path / "run"))
    # The folder does not vouch for itself.
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").trust == "mine_of_trust"
    with pytest.raises(UserError, match=r"^run=.*config.yaml: model._target_.*add trust=\[mine_of_trust\]$"):
        read_run(str(tmp_path / "run"))
    assert type(read_run(str(tmp_path / "run"), trust=["mine_of_trust"]).net).__name__ == "Net"


@pytest.mark.parametrize(("key", "target"), [*CALLS[:3], ("model.width", "torch.os.remove")])
def test_an_export_of_anybodys_folder_refuses(key, target, victim, tmp_path, capsys):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {"net.weight": torch.ones(1)}}, folder / "checkpoints" / "last.ckpt")
    cfg = hostile(composed(*SMALL, save_dir=folder), key, target, str(victim))
    cfg.trust = ["torch"]
    OmegaConf.save(cfg, folder / "config.yaml")
    assert export(["format=mcu", f"run={folder}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: run={folder}: config.yaml: {key}._target_={target} was not run")
    assert error.count("\n") == 1
    assert not (folder / "export").exists()


def test_the_command_line_of_an_export_names_packages():
    assert parse(["format=mcu", "run=x", "trust=[a, b.c]"]).trust == ("a", "b.c")
    assert parse(["format=mcu", "run=x", "trust=a"]).trust == ("a",)
    assert parse(["format=mcu", "run=x"]).trust == ()
    with pytest.raises(ConfigError, match=r"^trust: os .*Python's own"):
        parse(["format=mcu", "run=x", "trust=[os]"])


@pytest.mark.parametrize(
    ("key", "target"), [("hw.systolic_32x32", "torch.os.remove"), ("optim.optimizer", "torch.os.remove")]
)
def test_a_search_of_machines_refuses(key, target, victim, tmp_path):
    cfg = hostile(compose_copy("dse"), key, target, str(victim))
    cfg.save_dir = str(tmp_path / "search")
    with pytest.raises(ConfigError, match="was not run"):
        dse.search_machines(cfg)


def test_a_benchmark_refuses():
    with pytest.raises(ConfigError, match=r"model._target_=torch.hub.load was not run"):
        subjects.config(["model._target_=torch.hub.load"])


def test_a_profile_of_another_folder_is_refused(victim, tmp_path, monkeypatch):
    monkeypatch.setattr("octo_exp.exports.request.CONF", tmp_path)
    (tmp_path / "hw").mkdir()
    (tmp_path / "hw" / "evil.yaml").write_text(f"_target_: torch.os.remove\n_args_: ['{victim}']\n")
    with pytest.raises(ConfigError, match=r"hw.evil._target_=torch.os.remove was not run"):
        profile_of("evil")


def test_a_job_of_hydras_trusts_what_its_command_line_says(monkeypatch):
    from hydra.core.hydra_config import HydraConfig

    state = OmegaConf.create({"hydra": {"overrides": {"task": ["seed=1"]}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", state)
    with pytest.raises(ConfigError, match=r"^trust .* yaml.*mine"):
        check_targets({"trust": ["mine"]})
    check_targets({"trust": []})
    state.hydra.overrides.task = ["+trust=[mine]"]
    check_targets({"trust": ["mine"]})
