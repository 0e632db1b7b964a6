"""Who holds or watches a layer before conversion holds and watches the same thing after it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from octo_exp.nn.activation import Activation
from octo_exp.nn.convert import convert
from octo_exp.nn.layers import QuantConv2d, QuantLayer, QuantLinear
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import relative, scheme


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5))


def converted(model: nn.Module, **changes: object) -> nn.Module:
    convert(model, scheme("int8", **changes), impl="torch", clock=Clock())
    return model


def watch(model: nn.Module, place: int, kind: str) -> list[torch.Tensor]:
    """Register a hook of torch's on one module; return the list that its tensors go into."""
    seen: list[torch.Tensor] = []
    hooks: dict[str, Callable[..., Any]] = {
        "forward": lambda module, x, y: seen.append(y.detach().clone()),
        "forward_pre": lambda module, x: seen.append(x[0].detach().clone()),
        "full_backward": lambda module, dx, g: seen.append(g[0].detach().clone()),
        "full_backward_pre": lambda module, g: seen.append(g[0].detach().clone()),
    }
    getattr(model[place], f"register_{kind}_hook")(hooks[kind])
    return seen


@pytest.mark.parametrize("skip", ["[]", "['0','3']"])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_sees_after_conversion_what_it_would_see_in_the_float_net(kind, place, skip):
    plain, ours = net(), net()
    expected, seen = watch(plain, place, kind), watch(ours, place, kind)
    converted(ours, skip=skip, norm_input="int8")
    x = torch.randn(4, 3, 6, 6)
    g = torch.randn(4, 5)
    plain(x.clone().requires_grad_()).backward(g)
    ours(x.clone().requires_grad_()).backward(g)
    assert len(seen) == len(expected) == 1
    assert seen[0].shape == expected[0].shape
    assert relative(seen[0], expected[0]) <= 0.15


def test_an_unwatched_net_still_does_its_steps_in_the_layers():
    model = converted(net())
    assert all(module.absorbed for module in model if isinstance(module, Activation) and module.steps.pool > 1)


def test_a_hook_can_change_the_output_and_be_removed():
    model = net()
    handle = model[7].register_forward_hook(lambda module, x, y: y + 100)
    converted(model)
    x = torch.randn(2, 3, 6, 6)
    assert model(x).min() > 50
    handle.remove()
    assert model(x).max() < 50


def test_a_layer_in_a_plain_list_is_the_quantised_one():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.order = [self.b, self.a]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.order:
                x = layer(x)
            return x

    model = converted(Listed())
    model(torch.randn(3, 4))
    assert all(isinstance(layer, QuantLinear) and layer.ran for layer in model.order)
    assert model.order[0] is model.b


def test_shared_and_tied_layers_stay_so():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner = nn.Conv2d(4, 4, 1), nn.Sequential()
            self.inner.add_module("again", self.conv)
            self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
            self.tied.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tied(self.first(self.inner(self.conv(x)).mean((2, 3))))

    plain = Shared()
    model = converted(copy.deepcopy(plain))
    assert model.conv is model.inner.again
    assert isinstance(model.conv, QuantConv2d)
    assert model.first.weight is model.tied.weight
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    x, g = torch.randn(5, 4, 3, 3), torch.randn(5, 4)
    plain(x).backward(g)
    model(x).backward(g)
    assert relative(model.first.weight.grad, plain.first.weight.grad) <= 0.05
    assert relative(model.conv.weight.grad, plain.conv.weight.grad) <= 0.05


def test_frozen_layers_stay_frozen_and_modes_stay():
    model = net()
    model[0].requires_grad_(False)
    model[3].eval()
    converted(model)
    assert [p.requires_grad for p in model[0].parameters()] == [False, False]
    assert [module.training for module in model[3].modules()] == [False] * len(list(model[3].modules()))
    assert all(module.training for module in model[7].modules())
    model[3].train()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert model[0].weight.grad is None
    assert model[3].weight.grad is not None
    assert sum(isinstance(module, QuantLayer) for module in model.modules()) == 3
