"""Inputs of every rank and number that torch takes, and layers that have no shape yet."""

import copy

import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.nn.convert import convert
from octo_exp.nn.layers import QuantConv2d, QuantLinear
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import relative, scheme

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convs, nn.Conv2d(4, 6, 2), nn.MaxPool2d(2), nn.Flatten(-3), nn.Linear(6, 5))


def converted(model: nn.Module, name: str = "int8", **options: object) -> nn.Module:
    shape = options.pop("input_shape", None)
    convert(model, scheme(name, **options), impl="torch", clock=Clock(), input_shape=shape)
    return model


@pytest.mark.parametrize("skip", ["[]", "['0','2']"])
@pytest.mark.parametrize("name", ["int8", "lac", "octo"])
def test_an_image_without_a_batch_is_a_batch_of_one(name, skip):
    model = converted(net(), name, skip=skip)
    x, g = torch.rand(3, 8, 8), torch.randn(1, 5)
    twin = copy.deepcopy(model)
    alone, batch = x.clone().requires_grad_(), x[None].clone().requires_grad_()
    y, expected = model(alone), twin(batch)
    assert torch.equal(y, expected[0])
    y.backward(g[0])
    expected.backward(g)
    assert torch.equal(alone.grad, batch.grad[0])
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert torch.equal(model.eval()(x), twin.eval()(x[None])[0])


def test_a_vector_is_a_row():
    model = converted(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), skip="['2']")
    x = torch.randn(6)
    assert torch.equal(model(x), model(x[None])[0])


@pytest.mark.parametrize("skip", ["[]", "['0','8']"])
@pytest.mark.parametrize("name", ["int8", "octo"])
def test_an_empty_batch_gives_what_torch_gives_and_leaves_the_ranges(name, skip):
    plain, model = net(), converted(net(), name, skip=skip)
    model(torch.rand(4, 3, 8, 8))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for module in (plain, model):
        x = torch.rand(0, 3, 8, 8, requires_grad=True)
        y = module(x)
        assert y.shape == (0, 5)
        y.sum().backward()
        assert x.grad.shape == x.shape
    for ours, theirs in zip(model[0].parameters(), plain[0].parameters(), strict=False):
        assert torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.eval()(torch.rand(0, 3, 8, 8)).shape == (0, 5)


@pytest.mark.parametrize("shape", [(3,), (8, 8), (2, 4, 8, 8), (4, 8, 8), (1, 2, 3, 8, 8)])
def test_an_input_that_torch_refuses_is_refused_in_its_words(shape):
    plain, x = net(), torch.rand(shape)
    with pytest.raises(RuntimeError) as expected:
        plain(x)
    with pytest.raises(RuntimeError) as found:
        converted(net())(x)
    assert str(found.value) == str(expected.value)


def lazy_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.9), nn.LazyLinear(5))


def test_lazy_layers_take_their_shapes_from_the_image_and_are_quantised():
    plain = lazy_net().eval()
    plain(torch.zeros(1, 3, 8, 8))
    model = lazy_net()
    model[3].eval()
    converted(model, input_shape=(3, 8, 8))
    assert [type(model[i]) for i in (0, 4)] == [QuantConv2d, QuantLinear]
    # The modes of the parts are those that they had.
    assert [module.training for module in model] == [True, True, True, False, True]
    x = torch.randn(4, 3, 8, 8)
    assert 0 < relative(model(x), plain(x)) <= 0.05
    with pytest.raises(UserError, match=r"layer '0' has no shape yet: pass input_shape"):
        converted(lazy_net())


@pytest.mark.parametrize("saved", ["fp32", "int8"])
def test_a_norm_takes_and_refuses_the_batches_that_torch_does(saved):
    norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model = converted(copy.deepcopy(norm), norm_input=saved)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.rand(1, 3, 1, 1))
    assert torch.isfinite(model[1].running_var).all()
    assert model(torch.rand(0, 3, 2, 2)).shape == (0, 4, 2, 2)
    assert model.eval()[1](torch.rand(1, 4, 1, 1)).shape == (1, 4, 1, 1)
