"""A plain loop over a converted net: a step that is not finite leaves no trace in it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import scheme, state

TENSOR = "{granularity:tensor}"
# Scheme, its changes, implementation: every kind of range, of scale and of clipping.
CASES = [
    ("int8", {}, "torch"),
    ("int8", {"x__range": "hindsight", "w__range": "hindsight", "g__range": "hindsight"}, "reference"),
    ("int8", {"x__range": "hindsight", "w__range": "hindsight", "g__range": "hindsight"}, "torch"),
    ("int8", {"x__symmetric": "false", "w__granularity": "channel", "g__range": "hindsight"}, "torch"),
    ("int8", {"x__rounding": "stochastic", "g__rounding": "stochastic", "g__range": "hindsight"}, "torch"),
    ("int8", {"x__granularity": "sample", "x_weight": "{granularity:tensor}"}, "torch"),
    ("int8", {"g__granularity": "sample", "g_weight": TENSOR, "w_input": "{granularity:input_channel}"}, "reference"),
    ("fake_qat", {}, "torch"),
    ("fake_qat", {"x__range": "hindsight"}, "reference"),
    ("prc", {"clip": "gaussian", "x__range": "hindsight", "g__range": "hindsight"}, "torch"),
    ("octo", {"clip": "learned", "w__granularity": "channel"}, "reference"),
    ("octo", {"clip": "learned", "x__range": "hindsight", "g__range": "hindsight"}, "torch"),
]


def network(name: str, impl: str, **changes: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 4),
    )
    convert(net, scheme(name, **changes), impl=impl, clock=Clock())
    return net


def images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, 5, 2, 8, 8, generator=generator))


def spoiled(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[2, 1, 3, 3] = value
    return x


def train(net: nn.Module, batches: list[Tensor], *, guarded: bool = True) -> list[float]:
    """Losses of a loop as users write it; guarded: a loss that is not finite makes no step, as with a GradScaler."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for x in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), torch.arange(len(x)) % 4)
        loss.backward()
        losses.append(loss.item())
        if loss.isfinite() or not guarded:
            optimizer.step()
    return losses


@pytest.mark.parametrize(("name", "changes", "impl"), CASES, ids=str)
def test_a_step_that_is_not_finite_leaves_no_trace(name, changes, impl):
    net = network(name, impl, **changes)
    nets = [net, copy.deepcopy(net)]
    a, b, c = images(3)
    losses = train(nets[0], [a, spoiled(b, math.nan), b, spoiled(b, math.inf), spoiled(c, -math.inf), c])
    assert [math.isfinite(loss) for loss in losses] == [True, False, True, False, False, True]
    train(nets[1], [a, b, c])
    left, right = (state(net) for net in nets)
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []
    assert all(value.isfinite().all() for value in left.values())
    with torch.no_grad():
        assert torch.equal(*(net.eval()(a) for net in nets))


@pytest.mark.parametrize("range_", ["dynamic", "hindsight"])
def test_ranges_stay_finite_where_the_weights_do_not(range_):
    net = network("octo", "torch", x__range=range_, g__range=range_, clip="learned")
    a, b, c = images(3)
    train(net, [a])
    stored = {key: value.clone() for key, value in net.named_buffers()}
    losses = train(net, [spoiled(b, math.nan), c, a], guarded=False)
    assert all(map(math.isnan, losses))
    changed = [key for key, value in net.named_buffers() if not torch.equal(value, stored[key])]
    # The first layer still sees finite images.
    assert set(changed) <= {f"0.quantizer_x.{name}" for name in ("low", "high", "count")}
    assert all(value.isfinite().all() for value in net.buffers())


@pytest.mark.parametrize("range_", ["dynamic", "hindsight"])
def test_after_a_first_step_that_is_not_finite_there_is_no_range(range_):
    net = network("int8", "torch", x__range=range_)
    a, b = images(2)
    train(net, [spoiled(a, math.nan)])
    with pytest.raises(UserError, match="no stored range"):
        net.eval()(b)
    net.train()
    assert all(map(math.isfinite, train(net, [b])))
    assert net.eval()(b).isfinite().all()
