"""Every yaml of `update`: composes in one line, instantiates, needs what its comment says; nothing has a default."""

import inspect
import re

import pytest
import torch
from hydra.utils import get_class, instantiate

from octo_exp.base.errors import UserError
from octo_exp.config.wording import check_value
from octo_exp.graph.train.update.extra_memory import update_memory
from octo_exp.graph.train.update.optimizers import MODES
from octo_exp.graph.train.update.rule import OPTIMIZERS, UpdateRule
from octo_exp.graph.train.update.selection import SparseUpdate
from octo_exp.tracing.optimizer import optimizer_cost as cost_of
from tests.configs import CONF, compose_copy, options
from tests.graph.update.helpers import MODELS, released_shapes, sparse
from tests.tracing.mcu_helpers import SIDE, tiny

OPTIONS = options("update")


def composed_rule(option: str, *settings: str):
    return compose_copy("train", f"update={option}", *settings)["update"]


def rule_of(option: str, *settings: str) -> UpdateRule:
    return instantiate(composed_rule(option, *settings))


@pytest.mark.parametrize("option", OPTIONS)
def test_what_a_comment_says_of_memory_is_what_the_update_needs(option):
    rule = rule_of(option)
    claims = dict(re.findall(r"(\w+) ([\d.]+) KB", (CONF / "update" / f"{option}.yaml").read_text()))
    published = re.fullmatch(r"(.*)_(\d+)kb", option)
    assert set(claims) <= set(MODELS.values())
    assert not published or set(claims) == {published[1]}
    assert not (rule.budget_kb and claims), "what is searched for is not known before"
    for released, name in MODELS.items():
        if name in claims:
            shapes = released_shapes(released)
            memory = update_memory(shapes, rule.sparse.rules(shapes), head_inputs=shapes[-1].out_channels)
            assert claims[name] == f"{memory.kb:.3f}"
            assert not published or published[2] == str(int(memory.kb))


def test_the_fifteen_published_ones_are_there():
    published = [option for option in OPTIONS if re.search(r"\d+kb$", option)]
    assert {name: sum(o.startswith(name) for o in published) for name in MODELS.values()} == dict.fromkeys(
        MODELS.values(), 5
    )


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_and_constructor_name_the_same_arguments(option):
    node = composed_rule(option)
    for part in (node, node.sparse, node.search, node.search.probe, node.search.solver):
        parameters = inspect.signature(get_class(part._target_)).parameters.values()
        assert {p.name for p in parameters} == {key for key in part if not str(key).startswith("_")}
        assert all(p.kind == p.KEYWORD_ONLY and p.default is p.empty for p in parameters)


@pytest.mark.parametrize("option", OPTIONS)
def test_numbers_may_be_fractions(option):
    node = composed_rule(option)
    check_value("update.budget_kb", 0.1, node.budget_kb)
    for name in ("lr", "weight_decay"):
        check_value(f"update.{name}", 0.1, node[name])
    if node.sparse.ratio is not None:
        check_value("update.sparse.ratio", [0.5], list(node.sparse.ratio))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_mode_and_lists_are_settings(optimizer):
    rule = rule_of(
        "mcunet_5fps_99kb",
        f"update.optimizer={optimizer}",
        "update.mode=strict_int8",
        "update.sparse.weight_idx='21-24'",
        "update.sparse.ratio='1-0.5'",
        "seed=7",
    )
    assert (rule.optimizer, rule.mode, rule.sparse.seed) == (optimizer, "strict_int8", 7)
    assert (rule.sparse.weight_idx, rule.sparse.ratio) == ((21, 24), (1.0, 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lars"}, "update.optimizer=lars; choose one of sgd, sgd_nomom, sgd_scale, sgd_scale_nomom"),
        ({"mode": "int8"}, "update.mode=int8; choose one of released, strict_int8"),
        ({"lr": -0.1}, "update.lr=-0.1 must be"),
        ({"lr": float("nan")}, "update.lr=nan must be"),
        ({"weight_decay": -1}, "update.weight_decay=-1 must be"),
        ({"budget_kb": 0}, "update.budget_kb=0 must be a number of KB above 0"),
        ({"budget_kb": "much"}, "update.budget_kb=much must be a number of KB above 0"),
    ],
    ids=str,
)
def test_what_a_rule_refuses(changes, message):
    values = {"optimizer": "sgd", "mode": "released", "lr": 0.1, "weight_decay": 0.0, "budget_kb": None} | changes
    with pytest.raises(UserError, match=f"^{message}"):
        UpdateRule(sparse=SparseUpdate(**sparse()), search=None, **values)


# Which layers train is for another graph than this one.
WHOLE = [f"update.sparse.{key}" for key in ("n_bias=all", "n_weight=all", "weight_idx=null", "ratio=null")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_rule_takes_a_step_and_has_its_price(option, mode):
    rule = rule_of(option, *WHOLE, f"update.mode={mode}")
    net = tiny()
    rule.apply(net)
    optimizer = rule.build_optimizer(net, rule.parameter_groups(net))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    net(torch.randint(-127, 128, (2, 3, SIDE, SIDE)).float()).square().sum().backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert mode == "released" or all(torch.equal(conv.weight, conv.weight.round()) for conv in net.convs)
    cost = cost_of(optimizer)
    assert cost.operations >= 1
    assert cost.coded_operations >= (2 if mode == "strict_int8" else 0)
