"""A value out of its range is answered with what may stand there; what the library takes is taken."""

import re
from typing import Any

import pytest
import yaml

from octo_exp.base.errors import ConfigError
from octo_exp.config.allowed import check_values, rule_of

# key -> values, as yaml has them, that no run can be made of, and values that one can.
RANGES: dict[str, tuple[list[str], list[str]]] = {
    "seed": (["-1", "4294967296"], ["0", "4294967295"]),
    "optim.scheduler.warmup_fraction": (["2", "-0.1", ".nan", "null"], ["0", "1", "0.5"]),
    "logger.csv.flush_logs_every_n_steps": (["0", "null"], ["1"]),
    "optim.interval": (["batch"], ["step", "epoch", "null"]),
    "optim.frequency": (["0"], ["2", "null"]),
    "logger.wandb.project": (["a/b", "''"], ["a-b", "null"]),
    "logger.wandb.mode": (["of"], ["offline", "null"]),
    "logger.wandb.wait_s": (["-1", ".nan"], ["0", "2.5"]),
    "trainer.max_epochs": (["-5", "x", "1.5", "true"], ["0", "-1", "null"]),
    "trainer.min_epochs": (["-1"], ["1", "null"]),
    "trainer.max_steps": (["-5", "null", "x"], ["-1", "20"]),
    "trainer.min_steps": (["-1"], ["5"]),
    "trainer.max_time": (["abc", "5", "{}"], ["'00:01:00:00'", "{hours: 1}", "null"]),
    "trainer.devices": (["0", "[]", "null"], ["1", "auto", "[0]", "-1"]),
    "trainer.num_nodes": (["0"], ["1"]),
    "trainer.accumulate_grad_batches": (["0", "-1", "1.5", "null"], ["4"]),
    "trainer.gradient_clip_val": (["-1", ".nan", "x"], ["0", "0.5", "null"]),
    "trainer.limit_train_batches": (["1.5", "-1", "-0.5", "all"], ["0", "4", "0.5", "1.0", "null"]),
    "trainer.limit_val_batches": (["1.5", "all"], ["0", "null"]),
    "trainer.overfit_batches": (["2.5", "null"], ["0.0", "3"]),
    "trainer.check_val_every_n_epoch": (["0", "-1"], ["2", "null"]),
    "trainer.val_check_interval": (["0", "-1", "1.5", "0.0", "x"], ["0.25", "7", "'00:01:00:00'", "null"]),
    "trainer.log_every_n_steps": (["-1", "1.5"], ["0", "null"]),
    "trainer.num_sanity_val_steps": (["-2", "x"], ["-1", "2", "null"]),
    "trainer.deterministic": (["warm", "1"], ["warn", "true", "null"]),
    "trainer.benchmark": (["foo"], ["true", "null"]),
    "trainer.enable_progress_bar": (["foo"], ["false", "null"]),
    "trainer.detect_anomaly": (["foo", "null"], ["true"]),
    "trainer.fast_dev_run": (["-1", "x"], ["true", "2"]),
    "trainer.logger": (["false"], []),
    "trainer.callbacks": (["[]"], []),
    "trainer.default_root_dir": (["x"], []),
}


@pytest.mark.parametrize("key", RANGES)
def test_a_value_out_of_its_range_is_refused_and_one_within_is_not(key: str) -> None:
    rule = rule_of(key)
    assert rule is not None
    wrong, right = ([yaml.safe_load(value) for value in values] for values in RANGES[key])
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"^{re.escape(key)} expects .*, got "):
            rule.check(key, value)
    for value in right:
        rule.check(key, value)
    rule.check(key, "${later}")


def test_nested_values_are_found() -> None:
    config: dict[str, Any] = {"seed": 1, "optim": {"scheduler": {"warmup_fraction": 2}}}
    with pytest.raises(ConfigError, match=r"^optim.scheduler.warmup_fraction expects a number from 0 to 1, got 2$"):
        check_values(config)


def test_a_validation_across_epochs_needs_a_number_of_batches() -> None:
    check_values({"trainer": {"check_val_every_n_epoch": None, "val_check_interval": 7}})
    for interval in (None, 0.5):
        with pytest.raises(
            ConfigError, match=r"^trainer\.check_val_every_n_epoch=null .*val_check_interval is .* batches$"
        ):
            check_values({"trainer": {"check_val_every_n_epoch": None, "val_check_interval": interval}})
