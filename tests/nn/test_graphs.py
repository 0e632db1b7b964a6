"""A converted net under what records graphs: torch.compile runs it, torch.jit.trace and torch.export are refused."""

import copy

import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import scheme


def net(**changes: object) -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 5), nn.Linear(5, 3))
    convert(model, scheme("int8", **changes), impl="torch", clock=Clock())
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("skip", ["[]", "[first,last]"])
def test_a_compiled_net_trains_and_evaluates_bit_for_bit(skip):
    torch._dynamo.reset()
    model = net(skip=skip, norm_input="int8")
    twin = copy.deepcopy(model)
    # Without a compiler behind it: the graph is taken, and broken, all the same.
    compiled, x = torch.compile(model, backend="eager"), torch.randn(2, 3, 8, 8)
    y, expected = compiled(x), twin(x)
    assert torch.equal(y, expected)
    for output in (y, expected):
        output.square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    model.eval()
    twin.eval()
    with torch.no_grad():
        assert torch.equal(compiled(x), twin(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("skip", ["[]", "[first,last]"])
@pytest.mark.parametrize(
    "record",
    [torch.jit.trace, lambda model, x: torch.export.export(model, (x,), strict=False)],
    ids=["jit.trace", "export"],
)
def test_a_recorded_net_is_refused_in_one_line(record, skip):
    model, x = net(skip=skip), torch.randn(2, 3, 8, 8)
    model(x)
    with pytest.raises(UserError, match=r"octo export, or use torch\.compile") as refused:
        record(model.eval(), x)
    assert "\n" not in str(refused.value)
