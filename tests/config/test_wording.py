"""The nearest name is the one that a reader would have meant."""

import pytest

from octo_exp.base.errors import ConfigError
from octo_exp.config.wording import check_value, nearest, one_line

KEYS = ["seed", "train", "trainer", "trainer.max_epochs", "trainer.max_steps", "trainer.profiler", "data", "data.name"]
KEYS += [
    "data@source",
    "optim",
    "optim.optimizer",
    "optim.optimizer.lr",
    "quant.bits",
    "hydra.run.dir",
    "hydra.runtime",
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sede", "seed"),
        ("SEED", "seed"),
        ("lr", "optim.optimizer.lr"),
        ("optim.lr", "optim.optimizer.lr"),
        ("optimizer.lr", "optim.optimizer.lr"),
        ("max_epoch", "trainer.max_epochs"),
        ("traner.max_epochs", "trainer.max_epochs"),
        ("trainer.seed", "seed"),
        ("source", "data@source"),
        ("hydra.run.dri", "hydra.run.dir"),
        ("trainer.foo", None),
        ("zzz", None),
        # A part of the name itself is no suggestion.
        ("seed.x", None),
    ],
)
def test_nearest(name: str, expected: str | None) -> None:
    assert nearest(name, KEYS) == expected


def test_a_common_beginning_is_no_likeness() -> None:
    assert nearest("hydra.job_logging.handlers.mail", ["hydra.job_logging.handlers.file"]) is None


def test_nearest_of_nothing_is_nothing() -> None:
    assert nearest("seed", []) is None


def test_one_line_folds_white_space() -> None:
    assert one_line("a\n  b\t c\n") == "a b c"


@pytest.mark.parametrize("value", [None, 1, True, "x", [1], {"a": 1}])
@pytest.mark.parametrize("default", [None, "???"])
def test_a_default_that_says_no_type_takes_anything(value: object, default: object) -> None:
    check_value("key", value, default)


@pytest.mark.parametrize(
    ("value", "default"),
    [(1, 2.5), (-1, 0), (None, "a"), (None, [1]), (None, {"a": 1}), ([], [1]), (["a"], [1, "b"]), ([1], [0.5, 1])],
)
def test_values_that_fit(value: object, default: object) -> None:
    check_value("key", value, default)


@pytest.mark.parametrize(
    ("value", "default"),
    [
        (1.0, 2),
        (True, 1),
        (True, 1.0),
        (1, False),
        (None, 1),
        (None, True),
        (["a"], [0.5, 1]),
        ([1], "a"),
        ({}, [1]),
        ([True], [1]),
    ],
)
def test_values_that_do_not_fit(value: object, default: object) -> None:
    with pytest.raises(ConfigError, match=r"^key(\[0\])? expects "):
        check_value("key", value, default)


def test_an_interpolation_is_not_judged_before_it_is_resolved() -> None:
    check_value("key", "${other}", 1)
