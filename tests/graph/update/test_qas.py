"""Acceptance check 7: QAS divides by squared scales, spares the head, and does not wake dead channels."""

import numpy as np
import pytest
import torch

from octo_exp.graph.files.reader import read_model
from octo_exp.graph.spec import DEAD_SCALE
from octo_exp.graph.train.update.qas import bias_factors, scale_gradients, weight_factors
from tests.graph.update.helpers import Conv, golden_file, model_file

SIZES = [1, 7, 16, 63, 65]
# Half an ulp each for the factor and the product in float32; float64's own are nothing beside them.
TWO_ROUNDINGS = 2.0**-23


def close(value: torch.Tensor, expected: torch.Tensor, budget: float) -> bool:
    return bool(((value.double() - expected).abs() <= budget * expected.abs()).all())


def convolution(w_scales: torch.Tensor, *, x_scale: float = 0.0123) -> Conv:
    """With gradients drawn at random."""
    conv = Conv(3, len(w_scales), kernel=5)
    conv.w_scales, conv.x_scale = w_scales, torch.tensor(x_scale)
    conv.weight.grad, conv.bias.grad = torch.randn_like(conv.weight), torch.randn_like(conv.bias)
    return conv


@pytest.mark.parametrize("channels", SIZES)
@pytest.mark.parametrize("smallest", [DEAD_SCALE, 1e-3])
def test_each_output_channel_by_its_own_scale(channels, smallest):
    conv = convolution(smallest * (1.001 + 99 * torch.rand(channels)))
    weight, bias = conv.weight.grad.double(), conv.bias.grad.double()
    scale_gradients(conv)
    squares = conv.w_scales.double().square()
    assert close(conv.weight.grad, weight / squares.reshape(-1, 1, 1, 1), TWO_ROUNDINGS)
    assert close(conv.bias.grad, bias / (squares * conv.x_scale.double().square()), TWO_ROUNDINGS)
    # And back, in float32: two more for the square, one for the product.
    back = conv.weight.grad * conv.w_scales.square().reshape(-1, 1, 1, 1)
    assert close(back, weight, 2.5 * TWO_ROUNDINGS)


def test_a_dead_channel_gets_no_gradient():
    conv = convolution(torch.tensor([4e-9, 0.0, DEAD_SCALE * 0.99, DEAD_SCALE * 1.01, 1e-2]))
    scale_gradients(conv)
    for gradient in (conv.weight.grad, conv.bias.grad):
        assert torch.equal(gradient[:3].abs(), torch.zeros_like(gradient[:3]))
        assert torch.isfinite(gradient).all()
        assert (gradient[3:] != 0).all()


def test_only_the_gradients_that_there_are():
    conv = convolution(torch.full((7,), 0.5), x_scale=0.25)
    bias, conv.weight.grad = conv.bias.grad.clone(), None
    scale_gradients(conv)
    assert conv.weight.grad is None
    assert torch.equal(conv.bias.grad, bias * 64)
    weight = conv.weight.grad = torch.randn_like(conv.weight)
    expected, conv.bias.grad = weight * 4, None
    scale_gradients(conv)
    assert torch.equal(conv.weight.grad, expected)
    assert conv.bias.grad is None


def test_masked_gradients_stay_exactly_zero():
    conv = convolution(torch.full((7,), 1e-4))
    conv.weight.grad[:, ::2] = 0
    scale_gradients(conv)
    assert torch.equal(conv.weight.grad[:, ::2], torch.zeros(7, 2, 5, 5))
    assert (conv.weight.grad[:, 1] != 0).all()


@pytest.mark.data
@pytest.mark.parametrize("model", ["mbv2-w0.35", "mcunet-5fps"])
def test_the_scales_of_the_file_give_the_published_gradients(model):
    golden, convs = np.load(golden_file(f"{model}.npz")), read_model(model_file(model)).convs
    # The release recovers s_w in float32, e*s_y/s_x: three roundings, squared.
    budget = 2e-6
    last = len(convs) - 1
    pairs = [(i, f"S_full_wgrad_{i}", f"S_full_wgrad_qas_{i}") for i in (0, last - 2)]
    pairs += [(i, f"sparse_wgrad_{i}", f"sparse_wgrad_qas_{i}") for i in golden["sparse_manual_weight_idx"]]
    for index, raw, scaled in pairs:
        w_scales = torch.from_numpy(convs[index].w_scales)
        gradient = torch.from_numpy(golden[raw]) * weight_factors(w_scales).reshape(-1, 1, 1, 1)
        assert close(gradient, torch.from_numpy(golden[scaled]).double(), budget), scaled
    conv = convs[last]
    factors = bias_factors(torch.from_numpy(conv.w_scales), torch.tensor(conv.x_scale))
    gradient = torch.from_numpy(golden[f"sparse_bgrad_{last}"]) * factors
    assert close(gradient, torch.from_numpy(golden["sparse_bgrad_qas_last"]).double(), budget)
