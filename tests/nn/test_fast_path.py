"""torch's transformer layers have a path of their own in evaluation, which reads weights past the layers."""

import copy

import pytest
import torch
from torch import nn

from octo_exp.nn.convert import convert
from octo_exp.nn.layers import QuantLayer
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import relative, scheme


def encoder(depth: int = 2) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, depth))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("mask", [None, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])])
def test_evaluation_runs_the_quantised_layers_with_and_without_gradients(mask):
    plain = encoder()
    model = copy.deepcopy(plain)
    selection = convert(model, scheme("int8"), impl="torch", clock=Clock())
    layers = [f"0.layers.{i}.linear{j}" for i in range(2) for j in (1, 2)]
    assert selection.quantized == tuple(layers)
    assert set(selection.floats) == {f"0.layers.{i}.self_attn" for i in range(2)}
    x = torch.randn(2, 5, 8)
    model[0](x, src_key_padding_mask=mask)
    model.eval()
    plain.eval()
    for name in layers:
        model.get_submodule(name).ran = False
    with torch.no_grad():
        y, exact = model[0](x, src_key_padding_mask=mask), plain[0](x, src_key_padding_mask=mask)
    assert all(module.ran for module in model.modules() if isinstance(module, QuantLayer))
    inside = slice(None) if mask is None else ~mask
    # Attention itself has two paths in float, whose sums have different orders.
    assert relative(y[inside], model[0](x, src_key_padding_mask=mask)[inside]) <= 0.02
    assert 1e-4 < relative(y[inside], exact[inside]) <= 0.05


def test_an_encoder_without_quantised_layers_keeps_its_path():
    model = nn.Sequential(encoder(1), nn.Linear(8, 8))
    convert(model, scheme("int8", skip="['0.0.layers.0.linear*']"), impl="torch", clock=Clock())
    assert model[0][0].layers[0].activation_relu_or_gelu == 1
    assert model[0][0].use_nested_tensor
