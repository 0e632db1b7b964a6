"""Settings reach the library or are refused by name, in one line, before data are read."""

import csv
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from octo_exp.base.errors import ConfigError, UserError
from octo_exp.config.trust import check_targets
from octo_exp.runs.assemble import check_settings, fitted
from octo_exp.runs.assemble.optim import check_optim, optimizer_of, schedule_of
from tests.configs import CONF, composed
from tests.run_helpers import SMALL, go

STEP_LR = "optim.scheduler={_target_:torch.optim.lr_scheduler.StepLR,_partial_:true}"
REFUSED = {
    "optim.optimizer.lr=-1": r"^optim.optimizer.lr=-1: ValueError: Invalid learning rate: -1; correct the setting$",
    "optim.optimizer.betas=[2,3]": r"^optim.optimizer.betas=\[2, 3\]: ValueError: Invalid beta parameter",
    "optim.optimizer.weight_decay=-1": "^optim.optimizer.weight_decay=-1: ",
    "+optim.optimizer.weight_decays=1": (
        r"^unknown key 'optim.optimizer.weight_decays': did you mean 'optim.optimizer.weight_decay'\? torch.optim.Adam "
        "takes params, lr, "
    ),
    STEP_LR: r"^unknown key 'optim.scheduler.warmup_fraction': .*; ~optim.scheduler.warmup_fraction leaves it out$",
    "optim/scheduler=step optim.scheduler.step_size=0": "^optim.scheduler: ZeroDivisionError: ",
    "optim/scheduler=plateau optim.monitor=val/f1": "^optim.monitor=val/f1: .* one of train/loss, train/acc, val/loss",
    "optim/scheduler=plateau optim.interval=step": "^optim.monitor=val/loss: .* by step; .* one of train/loss$",
    "trainer.max_epochs=-1": "^optim.scheduler counts the run's steps, and trainer.max_epochs=-1 has no end",
    "trainer.profiler=foo": "^trainer.profiler=foo: MisconfigurationException: When passing string value",
    "trainer.precision=foo": "^trainer.precision=foo: ValueError: Precision 'foo' is invalid",
    "trainer.strategy=foo": "^trainer.strategy=foo: ValueError: You selected an invalid strategy",
    "trainer.accelerator=foo": "^trainer.accelerator=foo: ValueError: You selected an invalid accelerator",
    "trainer.gradient_clip_algorithm=foo": "^trainer.gradient_clip_algorithm=foo: ",
    "+trainer.max_epoch=3": r"^unknown key 'trainer.max_epoch': did you mean 'trainer.max_epochs'\?",
    "callbacks.checkpoint.monitor=val/f1": "^callbacks.checkpoint.monitor=val/f1: nothing logs it; choose one of train",
    "callbacks.checkpoint.mode=up": "^callbacks.checkpoint.mode=up: ",
    "callbacks=early_stop trainer.limit_val_batches=0": "^callbacks.early_stop.monitor=val/acc: trainer.limit_val",
    "trainer.max_epochs=0": "^trainer.max_epochs=0 trains nothing, .* set test=false, or train a step$",
    "trainer.limit_train_batches=0": "^trainer.limit_train_batches=0 trains nothing",
    "trainer.devices=2": "^trainer.devices=2, ",
    "+callbacks.mine={every:3}": "^callbacks.mine: nothing says of which class it is; write callbacks.mine._target_=",
}
TAKEN = [
    "trainer.max_epochs=0 quant=fp32",
    "trainer.max_epochs=0 test=false",
    "trainer.max_epochs=0 init_from=x",
    "trainer.deterministic=warn",
    "trainer.max_epochs=null trainer.max_steps=20",
    "+trainer.fast_dev_run=true +trainer.min_steps=2",
    "trainer.precision=null +trainer.plugins=[{_target_:lightning.pytorch.plugins.HalfPrecision,precision:bf16-true}]",
    "+callbacks.lr={_target_:lightning.pytorch.callbacks.LearningRateMonitor}",
    # Another's callback may log what is followed.
    "+callbacks.lr={_target_:lightning.pytorch.callbacks.LearningRateMonitor} callbacks.checkpoint.monitor=lr-Adam",
    "+logger.own._target_=lightning.pytorch.loggers.CSVLogger +logger.own.save_dir=.",
    "callbacks.checkpoint.monitor=null callbacks.checkpoint.save_top_k=1",
    "trainer.profiler=simple trainer.max_time={hours:1} trainer.max_epochs=-1 optim/scheduler=none",
]


def check(folder: Path, *settings: str) -> None:
    cfg = composed("logger=csv", *settings, save_dir=folder)
    check_targets(cfg)
    check_settings(cfg)


@pytest.mark.parametrize("settings", REFUSED)
def test_what_a_constructor_refuses_is_one_line_that_names_the_key(settings, tmp_path):
    with pytest.raises(UserError, match=REFUSED[settings]) as caught:
        check(tmp_path, *settings.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", TAKEN)
def test_what_the_library_takes_is_taken(settings, tmp_path):
    check(tmp_path, *settings.split())


PAIRS = [
    *(("adam", path.stem) for path in sorted((CONF / "optim/scheduler").glob("*.yaml"))),
    *((path.stem, "step") for path in sorted((CONF / "optim").glob("*.yaml"))),
]


@pytest.mark.parametrize(("optimizer", "schedule"), PAIRS)
def test_every_optimizer_and_every_schedule_moves_the_rate(optimizer, schedule):
    cfg = composed(f"optim={optimizer}", f"optim/scheduler={schedule}")
    check_optim(cfg)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    made = optimizer_of(cfg)([{"params": [weight]}])
    planned = schedule_of(cfg)
    if planned is None:
        assert schedule == "none"
        return
    config = planned(made, lambda: 30)
    assert config["interval"] == ("step" if schedule in ("warmup_cosine", "onecycle") else "epoch")
    assert config.get("monitor") == ("val/loss" if schedule == "plateau" else None)
    weight.grad = torch.ones(2, 2)
    rates = []
    for _ in range(25):
        made.step()
        config["scheduler"].step(*([1.0] if schedule == "plateau" else []))
        rates.append(made.param_groups[0]["lr"])
    assert len(set(rates)) > 1


def test_another_class_on_the_command_line_keeps_what_it_takes_as_well():
    words = ["optim.scheduler._target_=torch.optim.lr_scheduler.StepLR", "+optim.scheduler.step_size=3"]
    words += ["optim.optimizer._target_=torch.optim.Rprop", "optim.optimizer.lr=0.5"]
    cfg = fitted(composed(*words), [word.lstrip("+").partition("=")[0] for word in words])
    assert OmegaConf.to_container(cfg.optim) == {
        "optimizer": {"_target_": "torch.optim.Rprop", "_partial_": True, "_convert_": "all", "lr": 0.5},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 3},
    }
    check_optim(cfg)
    # What the user gave and the class does not take is refused, not dropped.
    given = ["optim.scheduler._target_", "optim.scheduler.step_size", "optim.scheduler.warmup_fraction"]
    kept = fitted(composed(*words[:2], "optim.scheduler.warmup_fraction=0.5"), given)
    with pytest.raises(ConfigError, match=r"^unknown key 'optim.scheduler.warmup_fraction'"):
        check_optim(kept)


def test_a_trainer_is_made_whatever_is_null(tmp_path):
    nulls = [f"trainer.{key}=null" for key in ("max_epochs", "precision", "log_every_n_steps", "num_sanity_val_steps")]
    nulls += [f"trainer.limit_{stage}_batches=null" for stage in ("train", "val", "test")]
    check(tmp_path, *nulls, "trainer.max_steps=5")


def rates(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["lr-SGD"]) for row in csv.DictReader(file) if row.get("lr-SGD")]


def test_a_schedule_by_epoch_is_stepped_by_epoch(tmp_path):
    monitor = {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor", "logging_interval": "step"}
    settings = ["optim=sgd", "optim/scheduler=step", "optim.scheduler.step_size=1", "optim.optimizer.lr=0.1"]
    go(tmp_path, *SMALL, *settings, callbacks={"lr": monitor})
    found = rates(tmp_path)
    # Two epochs of as many steps.
    assert found == pytest.approx([0.1] * (len(found) // 2) + [0.01] * (len(found) // 2))
    assert len(found) >= 4


def test_a_sanity_check_before_training_changes_nothing(tmp_path):
    hashes = [
        go(tmp_path / str(steps), *SMALL, "quant=octo", "data.epochs=1", f"trainer.num_sanity_val_steps={steps}")
        for steps in (0, 2)
    ]
    assert hashes[0]["weights_sha256"] == hashes[1]["weights_sha256"]
    assert hashes[0]["val/acc"] == hashes[1]["val/acc"]


def test_a_validation_that_never_comes_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match=r"`val_check_interval` .* must be less than or equal") as caught:
        go(tmp_path, *SMALL, "trainer.val_check_interval=1000")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


class Picky(torch.nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        if width < 1:
            raise ValueError(f"width below 1,\ngot {width}")
        self.layer = self._layer(width)

    def _layer(self, width):
        return torch.nn.Linear(width, width // (5 - width))


PICKY = {
    "+model.width=0": (
        r"^model: tests.test_settings.Picky raises ValueError: width below 1, got 0 "
        r"\(\S+test_settings.py:\d+\); correct the setting, or the class$"
    ),
    # A bug deep inside names its own line.
    "+model.width=5": r"^model: .* raises ZeroDivisionError: .* \(\S+test_settings.py:\d+\); ",
    "+model.width=x": "^model: .* raises TypeError: ",
    "trust=[tests]": r"^model.width must be given: .*Picky asks for it; write \+model.width=<value>$",
    "+model.width=3 +model.depth=2": "^model.depth: .*Picky takes width, num_classes; leave it out",
}


@pytest.mark.parametrize("settings", PICKY)
def test_what_a_network_of_ones_own_refuses_is_one_line_before_data_are_read(settings, tmp_path):
    own = ("model=own", f"model._target_={__name__}.Picky", "trust=[tests]")
    with pytest.raises(ConfigError, match=PICKY[settings]) as caught:
        check(tmp_path, *own, *settings.split())
    assert "\n" not in str(caught.value)
    check(tmp_path, *own, "+model.width=3")


def test_a_schedule_that_ends_before_the_longer_run_does_is_refused_before_the_first_step(tmp_path):
    settings = (*SMALL, "quant=fp32", "optim/scheduler=onecycle", "test=false")
    go(tmp_path / "short", *settings, "trainer.max_epochs=1")
    told = r"^optim.scheduler: OneCycleLR was planned for 2 steps and the run has 4; keep the length .* init_from="
    with pytest.raises(UserError, match=told) as caught:
        go(tmp_path / "long", *settings, "trainer.max_epochs=2", f"ckpt={tmp_path / 'short'}")
    assert caught.value.exit_code == 2
    # As long as planned, it goes on and ends.
    assert go(tmp_path / "same", *settings, "trainer.max_epochs=1", f"ckpt={tmp_path / 'short'}")["epochs"] == 1
