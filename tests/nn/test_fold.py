"""Back to plain torch: LAC's constants in the biases, everything else as it was."""

import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.models.simplecnn import SimpleCNN
from octo_exp.nn.convert import convert
from octo_exp.nn.fold import folded
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import scheme


def small() -> nn.Module:
    torch.manual_seed(0)
    return SimpleCNN(in_channels=1, num_classes=4, image_size=16, norm="batch", width=8, hidden=16)


def trained(name: str, **changes: object) -> nn.Module:
    """A converted net whose ranges have been seen, with compensation far from where it starts."""
    net = small()
    convert(net, scheme(name, **changes), impl="torch", clock=Clock(), input_shape=(1, 16, 16))
    net.train()
    for _ in range(3):
        net(torch.randn(8, 1, 16, 16) + 0.5)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if "compensator" in key:
                parameter.copy_(torch.randn_like(parameter))
    return net.eval()


@pytest.mark.parametrize("form", ["zero_point", "affine"])
@torch.no_grad()
def test_what_lac_adds_goes_into_the_bias(form):
    net, before = trained("lac", compensation=form), small()
    plain = folded(net, small())
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, QuantLayer)}
    assert layers
    for name, layer in layers.items():
        x = torch.rand(2, layer.weight.shape[1], *([6, 6] if layer.weight.dim() == 4 else []))
        layer.steps = None
        with_lac, compensator = layer(x), layer.compensator
        layer.compensator = None
        term = (with_lac - layer(x)).transpose(0, 1).flatten(1).mean(1)
        layer.compensator = compensator
        ours, own = plain.get_submodule(name), before.get_submodule(name)
        assert type(ours) in (nn.Conv2d, nn.Linear)
        added = ours.bias if own.bias is None else ours.bias - own.bias
        assert term.abs().max() > 0.01
        assert torch.allclose(added, term, atol=1e-4 * float(with_lac.abs().max()))
        assert torch.equal(ours.weight, layer.weight)


@pytest.mark.parametrize("name", ["int8", "octo_ec", "fp32"])
@torch.no_grad()
def test_nothing_to_fold_leaves_the_float_net(name):
    net = trained(name)
    plain = folded(net, small())
    state = net.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert not plain.training
    x = torch.randn(4, 1, 16, 16)
    if name != "int8":
        assert torch.allclose(plain(x), net(x), atol=1e-4)


def test_a_number_for_each_pixel_is_refused():
    net = trained("lac", compensation__granularity="element")
    told = r"element has a number for each pixel, and a bias one for each channel; train with quant\.compensation\.gran"
    with pytest.raises(UserError, match=told):
        folded(net, small())
