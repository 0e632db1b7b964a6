"""ReLU and pooling that stand by themselves, behind a norm or a sum, against torch's own modules."""

import copy

import pytest
import torch
from torch import nn

from octo_exp.nn.activation import Activation, activate_plainly
from octo_exp.nn.fuse import fuse
from octo_exp.nn.norm import SavedBatchNorm2d
from octo_exp.workload import Epilogue

STEPS = [Epilogue(relu=relu, pool=pool) for relu, pool in ((True, 1), (False, 2), (True, 2), (False, 3), (True, 3))]


def torchs_own(steps: Epilogue) -> nn.Module:
    pool = [nn.MaxPool2d(steps.pool)] if steps.pool > 1 else []
    return nn.Sequential(*[nn.ReLU()] * steps.relu, *pool)


def output_and_gradient(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    return y.detach(), x.grad


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 16, 63, 65])
def test_images_as_torchs_own_modules(channels, steps, impl):
    x = torch.randint(-3, 4, (2, channels, 7, 9)).float()
    activation = Activation(steps, impl=impl)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        pairs = zip(output_and_gradient(activation, given), output_and_gradient(torchs_own(steps), given), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(activate_plainly(given, steps), torchs_own(steps)(given))


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("shape", [(7,), (5, 63), (2, 3, 16)], ids=str)
def test_rows_as_torchs_own_relu(shape, impl):
    x = torch.randn(shape)
    pairs = zip(output_and_gradient(Activation(STEPS[0], impl=impl), x), output_and_gradient(nn.ReLU(), x), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_a_layer_does_already_is_passed_on():
    activation, x = Activation(STEPS[2], impl="torch"), torch.randn(2, 3, 4, 4)
    activation.absorbed = True
    assert activation(x) is x


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_behind_a_norm(impl):
    plain = nn.Sequential(nn.BatchNorm2d(9), nn.ReLU(), nn.MaxPool2d(2))
    # One layout: the norm's sums have an order each.
    net, x = copy.deepcopy(plain), torch.randn(4, 9, 7, 6).contiguous(memory_format=torch.channels_last)
    fuse(net, impl=impl, norm_input="fp32")
    assert [type(module) for module in net] == [nn.BatchNorm2d, Activation, nn.Identity]
    assert not net[1].absorbed
    pairs = zip(output_and_gradient(net, x), output_and_gradient(plain, x), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_what_a_norm_saves_is_the_nets_choice():
    for saved in ("int8", "bf16"):
        net = nn.Sequential(nn.BatchNorm2d(9), nn.ReLU())
        fuse(net, impl="torch", norm_input=saved)
        assert type(net[0]) is SavedBatchNorm2d
        assert net[0].saved == saved
