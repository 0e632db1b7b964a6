"""What may stand at a key where its default does not say it all: ranges, words, several types, null.

The keys of Lightning's trainer are here, for it takes many wrong values silently and fails in the middle of a run;
and those of ours that no constructor checks. What only a third party's constructor knows (strategies, profilers,
precisions) is found when it is called, before data are read. Standard library only.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octo_exp.base.errors import ConfigError
from octo_exp.config.wording import shown

# The largest seed that numpy's and Lightning's generators take.
_MOST_SEED = 2**32 - 1
_TIME = re.compile(r"\d+:\d\d:\d\d:\d\d")
_NO_PROJECT = set("/\\#?%:")
_MOST_PROJECT = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What may stand at a key.

    takes: in words, as they stand in "<key> expects ..., got 5".
    fits: value -> whether it may.
    """

    takes: str
    fits: Callable[[Any], bool]

    def check(self, key: str, value: Any) -> None:
        """Raise ConfigError unless the value fits; an interpolation is judged when it is resolved."""
        if not (isinstance(value, str) and "${" in value) and not self.fits(value):
            raise ConfigError(f"{key} expects {self.takes}, got {shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int, high: int | None = None) -> Rule:
    words = f"an integer from {low} to {high}" if high is not None else f"an integer from {low}"
    return Rule(takes=words, fits=lambda value: _is_whole(value) and low <= value <= (value if high is None else high))


def _number(low: float, high: float | None = None) -> Rule:
    words = f"a number from {low:g} to {high:g}" if high is not None else f"a number from {low:g}"
    return Rule(takes=words, fits=lambda value: _is_number(value) and low <= value <= (value if high is None else high))


def _switch() -> Rule:
    return Rule(takes="true or false", fits=lambda value: isinstance(value, bool))


def _either(*rules: Rule) -> Rule:
    return Rule(takes=", or ".join(rule.takes for rule in rules), fits=lambda v: any(rule.fits(v) for rule in rules))


def _word(*words: str) -> Rule:
    return Rule(takes=" or ".join(words), fits=lambda value: value in words)


def _batches(low: int) -> Rule:
    """How many batches as an integer, or a fraction of them."""
    return _either(
        Rule(
            takes="a fraction up to 1.0",
            fits=lambda value: isinstance(value, float) and low <= math.ceil(value) and 0 <= value <= 1,
        ),
        Rule(takes=f"a number of batches from {low}", fits=lambda value: _is_whole(value) and value >= low),
    )


_NULL = Rule(takes="null", fits=lambda value: value is None)
_DURATION = Rule(
    takes="a time, written DD:HH:MM:SS in quotes or {hours: 1}",
    fits=lambda value: (
        bool(_TIME.fullmatch(value)) if isinstance(value, str) else isinstance(value, Mapping) and bool(value)
    ),
)
_PROJECT = Rule(
    takes=f"a name of 1 to {_MOST_PROJECT} characters without {' '.join(sorted(_NO_PROJECT))}",
    fits=lambda value: 0 < len(str(value)) <= _MOST_PROJECT and not _NO_PROJECT & set(str(value)),
)
# Which name stands for a form, the constructor knows.
_FORM = Rule(
    takes="a name, or {_target_: ...} of a form",
    fits=lambda value: not isinstance(value, list) and (not isinstance(value, Mapping) or "_target_" in value),
)
# What the run gives the trainer, and what is to be set instead.
_GIVEN = {
    "trainer.callbacks": "+callbacks.<name>={_target_: ...}",
    "trainer.logger": "+logger.<name>={_target_: ...}, or logger=null",
    "trainer.default_root_dir": "hydra.run.dir=<folder>",
}

_RULES: dict[str, Rule] = {
    "seed": _whole(0, _MOST_SEED),
    **{f"quant.{operand}.{part}": _FORM for operand in "xwg" for part in ("rounding", "range", "granularity")},
    "optim.scheduler.warmup_fraction": _number(0, 1),
    "optim.interval": _either(_word("step", "epoch"), _NULL),
    "optim.frequency": _either(_whole(1), _NULL),
    "callbacks.quant_health.every_n_steps": _whole(1),
    "callbacks.throughput.skip": _whole(0),
    "logger.csv.flush_logs_every_n_steps": _whole(1),
    "logger.wandb.project": _either(_PROJECT, _NULL),
    "logger.wandb.mode": _either(_word("online", "offline", "disabled"), _NULL),
    "logger.wandb.wait_s": _number(0),
    "logger.wandb.online_s": _number(0),
    "trainer.max_epochs": _either(_whole(-1), _NULL),
    "trainer.min_epochs": _either(_whole(0), _NULL),
    "trainer.max_steps": _whole(-1),
    "trainer.min_steps": _either(_whole(0), _NULL),
    "trainer.max_time": _either(_DURATION, _NULL),
    "trainer.devices": Rule(takes="1, auto, -1 or [which one]", fits=lambda value: value not in (0, [], None)),
    "trainer.num_nodes": _whole(1),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.gradient_clip_val": _either(_number(0), _NULL),
    **{f"trainer.limit_{stage}_batches": _either(_batches(0), _NULL) for stage in ("train", "val", "test", "predict")},
    "trainer.overfit_batches": _batches(0),
    "trainer.check_val_every_n_epoch": _either(_whole(1), _NULL),
    "trainer.val_check_interval": _either(_batches(1), _DURATION, _NULL),
    "trainer.log_every_n_steps": _either(_whole(0), _NULL),
    "trainer.num_sanity_val_steps": _either(_whole(-1), _NULL),
    "trainer.fast_dev_run": _either(_switch(), _whole(0)),
    "trainer.deterministic": _either(_switch(), _word("warn"), _NULL),
    "trainer.benchmark": _either(_switch(), _NULL),
    **{f"trainer.{name}": _either(_switch(), _NULL) for name in ("enable_progress_bar", "enable_model_summary")},
    **{
        f"trainer.{name}": _switch()
        for name in (
            *("detect_anomaly", "enable_checkpointing", "inference_mode", "use_distributed_sampler"),
            *("sync_batchnorm", "barebones", "enable_autolog_hparams"),
        )
    },
    "trainer.reload_dataloaders_every_n_epochs": _whole(0),
    **{
        key: Rule(takes=f"nothing, for the run itself gives it; write {remedy}", fits=lambda value: False)
        for key, remedy in _GIVEN.items()
    },
}


def rule_of(key: str) -> Rule | None:
    """Return what may stand at a key; None where its default and its constructor say it."""
    return _RULES.get(key)


def check_values(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first value of a resolved config that is out of its range, or fits no other."""
    for key, value in _entries(config, ""):
        rule = rule_of(key)
        if rule is not None:
            rule.check(key, value)
    _check_together(config.get("trainer") or {})


def _check_together(trainer: Mapping[str, Any]) -> None:
    """Raise ConfigError for values of the trainer that cannot stand beside each other."""
    interval = trainer.get("val_check_interval")
    if "check_val_every_n_epoch" in trainer and trainer["check_val_every_n_epoch"] is None and not _counts(interval):
        raise ConfigError(
            f"trainer.check_val_every_n_epoch=null counts batches across epochs, and trainer.val_check_interval is "
            f"{shown(interval)}; set it to a number of batches"
        )


def _counts(interval: Any) -> bool:
    return _is_whole(interval) or isinstance(interval, str | Mapping)


def _entries(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{name}.")
