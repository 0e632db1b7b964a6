"""Norms that save a smaller input: torch's own forward, and gradients as far off as the input was rounded."""

import copy

import pytest
import torch
from torch import nn

from octo_exp.nn.norm import NORMS, SavedBatchNorm1d, SavedBatchNorm2d
from tests.nn.helpers import state

SHAPES = [(2, 1), (65, 7), (5, 16, 3), (7, 63, 2, 3), (3, 65, 7, 1), (16, 8, 9, 9)]
OPTIONS = [{}, {"momentum": None}, {"momentum": 0.3}, {"track_running_stats": False}, {"affine": False}, {"eps": 0.1}]


def norms(shape: tuple[int, ...], saved: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """(torch's norm, ours), with parameters and statistics that are not the initial ones."""
    plain = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], **options)
    for t in (*plain.parameters(), *(b for b in plain.buffers() if b.is_floating_point())):
        t.data.uniform_(0.5, 2.0)
    return plain, NORMS[type(plain)].convert(copy.deepcopy(plain), saved=saved)


def batch(shape: tuple[int, ...]) -> torch.Tensor:
    """Channels of different means and widths."""
    spread = torch.linspace(0.1, 10, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
    x = torch.randn(shape) * spread + 3 * spread
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def per_channel(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return t.reshape(1, -1, *[1] * (like.dim() - 2))


@pytest.mark.parametrize("saved", ["int8", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_forward_pass_and_the_statistics_are_torchs_bit_for_bit(shape, options, saved):
    plain, norm = norms(shape, saved, **options)
    for train in (True, True, False, True):
        x = batch(shape)
        plain.train(train), norm.train(train)
        y = norm(x.clone().requires_grad_())
        assert torch.equal(y, plain(x))
        assert y.is_contiguous(memory_format=torch.channels_last) or x.dim() != 4
        with torch.no_grad():
            assert torch.equal(norm(x), plain(x))
        assert state(norm).keys() == state(plain).keys()
        assert all(torch.equal(value, state(plain)[key]) for key, value in state(norm).items())


def gradients(norm: nn.Module, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    """[dx, dweight, dbias] in float64; the last two where there are parameters."""
    x = x.clone().requires_grad_()
    norm(x).backward(g)
    return [t.grad.double() for t in (x, *norm.parameters())]


def budgets(
    norm: nn.Module, x: torch.Tensor, g: torch.Tensor, saved: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How far off dx, dweight and dbias may be where the saved x is off by `error`, with roundings in any order.

    With x_hat off by d = s*error: dw is off by sum |g*d|, and in training dx = w*s*(g - mean(g) - x_hat*mean(g*x_hat))
    by |w|*s*(d*|mean(g*x_hat)| + (|x_hat| + d)*mean|g*d|).
    """
    x, g, others = x.double(), g.double(), [d for d in range(x.dim()) if d != 1]
    train = norm.training or norm.running_mean is None
    mean = x.mean(others, keepdim=True) if train else per_channel(norm.running_mean, x).double()
    var = x.var(others, correction=0, keepdim=True) if train else per_channel(norm.running_var, x).double()
    s = (var + norm.eps).rsqrt()
    weight = s if norm.weight is None else s * per_channel(norm.weight, x).double().abs()
    half_code = (x - mean).abs().amax(others, keepdim=True) / 127 / 2
    # The mean, the code and what is made of both are float32.
    error = (half_code if saved == "int8" else x.abs() * 2**-8) + 2**-21 * (x.abs() + mean.abs())
    d, x_hat = s * error, (x - mean) * s
    # Both norms sum and multiply in float32.
    n = x.numel() // x.shape[1] + 8
    gamma = 2 * n * 2**-24 / (1 - n * 2**-24)
    dw = (g * d).abs().sum(others) + gamma * (g * x_hat).abs().sum(others)
    rounded = (
        gamma * weight * (g.abs() + g.abs().mean(others, True) + x_hat.abs() * (g * x_hat).abs().mean(others, True))
    )
    share = d * (g * x_hat).mean(others, True).abs() + (x_hat.abs() + d) * (g * d).abs().mean(others, True)
    return weight * share * train + rounded, dw, gamma * g.abs().sum(others)


@pytest.mark.parametrize("saved", ["int8", "bf16"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_as_far_off_as_the_saved_input(shape, options, train, saved):
    plain, norm = (module.train(train) for module in norms(shape, saved, **options))
    x, g = batch(shape), torch.randn(shape)
    ours, expected = gradients(norm, x, g), gradients(plain, x, g)
    limits = budgets(norm, x, g, saved)
    assert len(ours) == (1 if options.get("affine") is False else 3)
    for a, b, budget in zip(ours, expected, limits, strict=False):
        assert ((a - b).abs() <= budget).all()


@pytest.mark.parametrize("saved", ["int8", "bf16"])
def test_a_constant_channel_and_a_wide_one_are_kept(saved):
    plain, norm = norms((4, 2, 3, 3), saved)
    x = torch.stack([torch.full((4, 3, 3), 0.3), 1e6 * torch.randn(4, 3, 3)], 1)
    g = torch.randn(x.shape)
    ours, expected = gradients(norm, x, g), gradients(plain, x, g)
    assert all(t.isfinite().all() for t in ours)
    assert ((ours[0] - expected[0]).abs() <= budgets(norm, x, g, saved)[0])[:, 1].all()


@pytest.mark.parametrize("train", [True, False])
def test_frozen_parameters_and_inputs_without_gradient(train):
    plain, norm = (module.train(train) for module in norms((16, 8, 9, 9), "int8"))
    x, g = batch((16, 8, 9, 9)), torch.randn(16, 8, 9, 9)
    whole = gradients(norm, x, g)
    norm.zero_grad()
    norm(x).backward(g)
    assert torch.equal(norm.weight.grad.double(), whole[1])
    assert torch.equal(norm.bias.grad.double(), whole[2])
    frozen = copy.deepcopy(norm).requires_grad_(False)
    frozen.zero_grad()
    leaf = x.clone().requires_grad_()
    frozen(leaf).backward(g)
    assert torch.equal(leaf.grad.double(), whole[0])
    assert frozen.weight.grad is None
    assert not frozen(x).requires_grad
    assert not plain.requires_grad_(False)(x).requires_grad


@pytest.mark.parametrize(("saved", "bytes_each"), [("int8", 1), ("bf16", 2)])
def test_bytes_saved(saved, bytes_each):
    _, norm = norms((16, 8, 9, 9), saved)
    x, kept = batch((16, 8, 9, 9)).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm(x)
    big = [t for t in kept if t.numel() > 8]
    assert [t.numel() * t.element_size() for t in big] == [bytes_each * x.numel()]
    # Scale, mean, inverse deviation and weight, one a channel.
    assert len(kept) - len(big) <= 4


def test_names_and_parameters_stay():
    for kind, ours in ((nn.BatchNorm1d, SavedBatchNorm1d), (nn.BatchNorm2d, SavedBatchNorm2d)):
        plain = kind(5)
        norm = NORMS[kind].convert(copy.copy(plain), saved="int8")
        assert type(norm) is ours
        assert norm.weight is plain.weight
        assert norm.running_mean is plain.running_mean
        assert repr(norm).removeprefix("Saved") == repr(plain)
        with pytest.raises(ValueError, match="expected"):
            norm(torch.randn(5))
