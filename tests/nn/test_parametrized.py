"""Weights that are computed from other tensors: by torch's parametrisations, its old hooks, and pruning."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

from octo_exp.nn.convert import convert
from octo_exp.nn.fold import folded
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import relative, scheme, state

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(prune.l1_unstructured(layer, "weight", amount=0.5), "bias", amount=0.5)


FORMS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": utils.weight_norm,
    "old spectral_norm": utils.spectral_norm,
    "pruned": pruned,
}


def net(form: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    conv, linear = form(nn.Conv2d(3, 5, 3, padding=1)), form(nn.Linear(45, 7))
    return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear)


def step(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    model.zero_grad()
    y = model(torch.rand((6, 3, 6, 6), generator=generator))
    y.backward(torch.randn(y.shape, generator=generator))
    return y.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["int8", "lac"])
def test_a_parametrised_layer_is_quantised_and_trains_what_it_is_computed_from(name, form):
    ours, plain = net(form), net(form)
    parameters = list(ours.parameters())
    keys = list(ours.state_dict())
    assert convert(ours, scheme(name), impl="torch", clock=Clock()).quantized == ("0", "4")
    kept = [p for key, p in ours.named_parameters() if "compensator" not in key]
    assert all(a is b for a, b in zip(kept, parameters, strict=True))
    added = ("quantizer", "compensator")
    assert [key for key in ours.state_dict() if not any(part in key for part in added)] == keys
    (y, grads), (expected, exact) = step(ours), step(plain)
    assert 0 < relative(y, expected) <= 0.05
    assert not [key for key in exact if relative(grads[key], exact[key]) > 0.15]
    # The state that a norm keeps moves as it does in the float net.
    for key, value in plain.state_dict().items():
        if "_u" in key or "_v" in key:
            assert torch.equal(ours.state_dict()[key], value)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_state_goes_into_a_second_net(form):
    ours, other = net(form), net(form)
    for model in (ours, other):
        convert(model, scheme("int8"), impl="torch", clock=Clock())
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    for _ in range(2):
        step(ours)
        optimizer.step()
    other.load_state_dict(state(ours))
    x = torch.rand(2, 3, 6, 6)
    assert torch.equal(other.eval()(x), ours.eval()(x))
    with torch.no_grad():
        ours(x)
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_folded_net_is_plain_and_computes_the_same(form):
    ours = net(form)
    convert(ours, scheme("lac"), impl="torch", clock=Clock())
    step(ours)
    # As an optimizer's last step does, after which no forward pass computes the weight anew.
    with torch.no_grad():
        for name, parameter in ours[4].named_parameters():
            parameter.fill_(0.5) if "compensator" in name else parameter.mul_(1.5)
    plain = folded(ours, net(form))
    assert set(plain.state_dict()) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert [type(plain[i]) for i in (0, 4)] == [nn.Conv2d, nn.Linear]
    x = torch.rand(2, 3, 6, 6)
    assert relative(plain(x), ours.eval()(x)) <= 0.05


def test_a_parametrisation_after_conversion_works_and_can_be_removed():
    model = net(lambda layer: layer)
    convert(model, scheme("int8"), impl="torch", clock=Clock())
    x = torch.rand(6, 3, 6, 6)
    before = model(x)
    for i in (0, 4):
        parametrizations.weight_norm(model[i])
    assert relative(model(x), before) <= 0.02
    for i in (0, 4):
        parametrize.remove_parametrizations(model[i], "weight")
        assert isinstance(model[i], QuantLayer)
    assert relative(model(x), before) <= 0.02
