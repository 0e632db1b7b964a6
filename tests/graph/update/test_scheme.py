"""Acceptance check 10: every option and every error of a sparse update; which layers train what."""

import pytest

from octo_exp.base.errors import UserError
from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.graph.train.update.selection import FROZEN, LayerRule, SparseUpdate
from tests.graph.update.helpers import sparse


def shape(c_in: int, c_out: int, *, groups: int = 1, kernel: int = 1) -> LayerShape:
    return LayerShape(
        in_channels=c_in, out_channels=c_out, groups=groups, kernel=(kernel, kernel), in_size=(4, 4), out_size=(4, 4)
    )


# first_conv and two inverted bottlenecks.
SHAPES = [
    shape(3, 8, kernel=3),
    *[shape(8, 16), shape(16, 16, groups=16, kernel=3), shape(16, 8)],
    *[shape(8, 63), shape(63, 63, groups=63, kernel=5), shape(63, 7)],
]


def rules(**changes) -> list[tuple[bool, int]]:
    return [(rule.train_bias, rule.kept) for rule in SparseUpdate(**sparse(**changes)).rules(SHAPES)]


NONE, BIAS = (False, 0), (True, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [(True, c) for c in (3, 8, 16, 16, 8, 63, 63)]),
        ({"n_bias": 0}, [NONE] * 7),
        ({"n_bias": 7, "n_weight": 0}, [BIAS] * 7),
        ({"n_bias": 2}, [NONE] * 5 + [(True, 63), (True, 63)]),
        ({"n_bias": 3, "n_weight": 1}, [NONE] * 4 + [BIAS, BIAS, (True, 63)]),
        ({"n_bias": 4, "weight_idx": [4, 5]}, [NONE] * 3 + [BIAS, (True, 8), (True, 63), BIAS]),
        ({"n_bias": 4, "weight_idx": "4-5"}, [NONE] * 3 + [BIAS, (True, 8), (True, 63), BIAS]),
        ({"n_bias": 4, "n_weight": None, "weight_idx": 4}, [NONE] * 3 + [BIAS, (True, 8), BIAS, BIAS]),
        ({"n_bias": 2, "ratio": 0.5}, [NONE] * 5 + [(True, 31), (True, 31)]),
        ({"n_bias": 2, "ratio": "0-.125"}, [NONE] * 5 + [BIAS, (True, 7)]),
        ({"n_bias": 2, "ratio": [1, 0.01]}, [NONE] * 5 + [(True, 63), BIAS]),
        ({"pw1_only": True}, [(True, c) for c in (0, 8, 0, 0, 8, 0, 0)]),
        ({"n_bias": 4, "pw1_only": True, "ratio": [0.5]}, [NONE] * 3 + [BIAS, (True, 4), BIAS, BIAS]),
        ({"n_bias": 6, "weight_idx": "1-2-4", "pw1_only": True}, [NONE] + [(True, c) for c in (8, 0, 0, 8, 0, 0)]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_trains(changes, expected):
    assert rules(**changes) == expected


def test_a_share_of_no_channel_freezes_the_weights():
    assert not LayerRule(train_bias=True, kept=0).train_weight
    assert LayerRule(train_bias=True, kept=1).train_weight
    assert not FROZEN.train_bias


@pytest.mark.parametrize("channels", [1, 7, 16, 63, 65])
@pytest.mark.parametrize("ratio", [0, 0.125, 0.29, 0.5, 0.99, 1])
def test_the_share_is_rounded_down(channels, ratio):
    (rule,) = SparseUpdate(**sparse(ratio=ratio)).rules([shape(channels, 5)])
    assert rule.kept == int(channels * ratio)
    assert rule.kept <= channels * ratio


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_bias": None}, "n_bias=null.*'all'"),
        ({"n_bias": -1}, "n_bias=-1"),
        ({"n_bias": True}, "n_bias=True"),
        ({"n_bias": 2.5}, "n_bias=2.5"),
        ({"n_weight": None}, "n_weight=null"),
        ({"n_bias": 8}, "n_bias=8: the model has 7 convolutions"),
        ({"n_bias": 2, "n_weight": 3}, "n_weight=3 is more than n_bias=2"),
        ({"n_bias": 2, "weight_idx": "4-5"}, "convolution 4, which trains no bias.*first that does is 5.*n_bias to 3"),
        ({"weight_idx": [4, 7]}, "convolution 7; the model has 7, the last is 6"),
        ({"weight_idx": "5-4"}, "weight_idx=5-4 must ascend.*4-5"),
        ({"weight_idx": [4, 4]}, "must ascend"),
        ({"weight_idx": "4-x"}, "weight_idx=4-x: write"),
        ({"weight_idx": [4.5]}, "weight_idx=.*write"),
        ({"weight_idx": [True]}, "weight_idx=.*write"),
        ({"weight_idx": [None]}, "weight_idx=.*write"),
        ({"weight_idx": []}, "weight_idx=.*write"),
        ({"weight_idx": [-1]}, "weight_idx=.*write"),
        ({"n_bias": 2, "ratio": "1-1-1"}, "3 entries for 2 weight layers.*5-6"),
        ({"n_bias": 2, "n_weight": 0, "ratio": [1]}, "1 entries for 0 weight layers.*none"),
        ({"ratio": 1.5}, "ratio=1.5: 1.5 is outside"),
        ({"ratio": [0.5, -1]}, "-1 is outside"),
        ({"ratio": float("nan")}, "outside"),
        ({"ratio": "1-half"}, "ratio=1-half: write"),
        ({"ratio": [None]}, "ratio=.*write"),
        ({"ratio": True}, "ratio=True: write"),
        ({"criteria": "l1"}, "criteria=l1; choose one of magnitude"),
        ({"pw1_only": "x"}, "pw1_only=x: write true or false"),
        ({"pw1_only": 1}, "pw1_only=1: write true or false"),
        ({"pw1_only": None}, "pw1_only=None: write true or false"),
    ],
    ids=str,
)
def test_what_is_refused(changes, message):
    with pytest.raises(UserError, match=f"^update.sparse.*{message}") as error:
        rules(**changes)
    assert "\n" not in str(error.value)


def test_a_grouped_convolution_trains_all_or_nothing():
    grouped = [shape(16, 32, groups=4)]
    assert [SparseUpdate(**sparse(ratio=r)).rules(grouped)[0].kept for r in (None, 1, 0)] == [16, 16, 0]
    with pytest.raises(UserError, match="convolution 0, whose 4 groups"):
        SparseUpdate(**sparse(ratio=0.5)).rules(grouped)
