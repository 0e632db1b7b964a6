import copy

import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from octo_exp.runs.weights import start_from, weights_sha256
from tests.nn.helpers import scheme


def net(name: str, *, classes: int = 3, hidden: int = 6) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    convert(model, scheme(name), impl="torch", clock=Clock())
    return model


def trained() -> nn.Sequential:
    """A net whose every value differs from a new net's, ranges and compensations included."""
    source = net("lac")
    source(torch.randn(4, 8))
    with torch.no_grad():
        source[0].compensator.theta.fill_(0.3)
    return source


def test_weights_and_compensations_are_taken_and_ranges_are_not():
    source, target = trained(), net("lac")
    assert start_from(target, source.state_dict(), where="x") == []
    assert torch.equal(target[0].weight, source[0].weight)
    assert torch.equal(target[0].compensator.theta, torch.full((6,), 0.3))
    assert target[0].quantizer_x.count == 0
    assert target[0].quantizer_x.high == 0


def test_a_scheme_without_compensation_takes_the_weights():
    source, target = trained(), net("int8")
    start_from(target, source.state_dict(), where="x")
    assert torch.equal(target[2].weight, source[2].weight)


def test_the_head_alone_may_differ():
    target = net("lac", classes=5)
    assert start_from(target, trained().state_dict(), where="x") == ["2.weight", "2.bias"]
    with pytest.raises(UserError, match="another model"):
        start_from(net("lac", hidden=7), trained().state_dict(), where="x")


def test_the_hash_depends_on_every_weight():
    model = nn.Linear(100, 3)
    same, other = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        other.weight[-1, -1] += 1e-6
    assert weights_sha256(same) == weights_sha256(model) != weights_sha256(other)
