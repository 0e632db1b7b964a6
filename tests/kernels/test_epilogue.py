"""The plain torch forms of ReLU, pooling and their masks against torch's own modules and autograd."""

import itertools

import pytest
import torch
from torch import nn

from octo_exp.kernels import ops
from octo_exp.kernels.plain.masks import pack_bits, unpack_bits
from octo_exp.workload import Epilogue

# The plain forms.
PLAIN = ops.backend("reference", "cpu")
CHANNELS = (1, 7, 8, 16, 63, 65)
SIZES = [(1, 1), (6, 6), (7, 8), (9, 7), (16, 5)]


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Small integers as floats: many ties, zeros and negative windows."""
    return torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def modules(steps: Epilogue) -> nn.Module:
    """What the steps stand for."""
    pool = nn.MaxPool2d(steps.pool) if steps.pool > 1 else nn.Identity()
    return nn.Sequential(nn.ReLU() if steps.relu else nn.Identity(), pool)


def gradient(g: torch.Tensor, mask: torch.Tensor | None, steps: Epilogue, size: torch.Size) -> torch.Tensor:
    """g of the steps' output -> the gradient of their input, as the layers put the two parts together."""
    g = g if mask is None else PLAIN.mask_gradient(g, mask, steps)
    return PLAIN.spread(g, mask, steps, size) if steps.pool > 1 else g


def check(y: torch.Tensor, steps: Epilogue) -> None:
    out, mask = PLAIN.activate(y, steps)
    reference = y.clone().requires_grad_()
    expected = modules(steps)(reference)
    assert torch.equal(out, expected)
    g = values(*expected.shape, seed=1)
    expected.backward(g)
    assert torch.equal(gradient(g, mask, steps, y.shape[2:]), reference.grad)
    if mask is not None:
        passed = expected > 0 if steps.relu else torch.ones_like(g)
        assert torch.equal(PLAIN.mask_gradient(g, mask, steps), g * passed)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("pool", [1, 2, 3])
def test_images_as_relu_and_max_pool_and_their_gradients(pool, relu, channels):
    for size, layout in itertools.product(SIZES, (torch.contiguous_format, torch.channels_last)):
        if min(size) >= pool:
            check(values(3, channels, *size).contiguous(memory_format=layout), Epilogue(relu=relu, pool=pool))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rows", [(), (1,), (7,), (3, 5)])
def test_rows_of_any_rank_as_relu_and_its_gradient(channels, rows):
    check(values(*rows, channels), Epilogue(relu=True))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("pool", [2, 3, 11])
def test_the_first_of_equals_is_the_maximum(pool, relu):
    out, mask = PLAIN.activate(torch.ones(1, 2, pool, pool), Epilogue(relu=relu, pool=pool))
    assert out.flatten().tolist() == [1, 1]
    assert mask.flatten().tolist() == [0, 0]


@pytest.mark.parametrize("fill", [0.0, -0.0, -2.0])
def test_a_window_that_relu_cuts_has_no_place(fill):
    y = torch.full((1, 1, 2, 2), fill)
    out, mask = PLAIN.activate(y, Epilogue(relu=True, pool=2))
    assert (out.item(), mask.item()) == (0, 4)
    assert PLAIN.activate(y, Epilogue(relu=True))[1].sum() == 0
    out, mask = PLAIN.activate(y, Epilogue(relu=False, pool=2))
    assert (out.item(), mask.item()) == (fill, 0)


@pytest.mark.parametrize("pool", [2, 3])
def test_each_place_of_a_window_is_found(pool):
    taps = pool * pool
    y = torch.eye(taps).reshape(1, taps, pool, pool)
    _, mask = PLAIN.activate(y, Epilogue(relu=True, pool=pool))
    assert mask.flatten().tolist() == list(range(taps))
    assert torch.equal(PLAIN.spread(torch.ones(1, taps, 1, 1), mask, Epilogue(relu=True, pool=pool), y.shape[2:]), y)


def test_nan_passes():
    y = torch.tensor([[[[1.0, float("nan")], [3.0, 2.0]]]])
    for relu, pool in itertools.product((True, False), (1, 2)):
        out = PLAIN.activate(y, Epilogue(relu=relu, pool=pool))[0]
        assert torch.equal(out.isnan(), modules(Epilogue(relu=relu, pool=pool))(y).isnan())
        assert out.isnan().sum() == 1


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("steps", [Epilogue(relu=True), Epilogue(relu=True, pool=2)], ids=str)
def test_the_gradient_passes_at_nan_as_in_torch(impl, steps):
    y = torch.tensor([[[[-1.0, float("nan")], [-3.0, 0.0]]]], requires_grad=True)
    (wanted,) = torch.autograd.grad(modules(steps)(y).sum(), y)
    out, mask = ops.backend(impl, "cpu").activate(y.detach(), steps)
    g = ops.backend(impl, "cpu").mask_gradient(torch.ones_like(out), mask, steps)
    g = g if steps.pool == 1 else ops.backend(impl, "cpu").spread(g, mask, steps, (2, 2))
    assert torch.equal(g, wanted)
    assert g[0, 0, 0, 1] == 1


def test_masks_and_outputs_have_their_types_and_layouts():
    y = values(2, 9, 5, 7)
    out, bits = PLAIN.activate(y, Epilogue(relu=True))
    assert (bits.dtype, bits.shape) == (torch.uint8, (2, 5, 7, 2))
    out, index = PLAIN.activate(y, Epilogue(relu=False, pool=2))
    assert (index.dtype, index.shape) == (torch.int8, (2, 2, 3, 9))
    assert index.is_contiguous()
    assert out.is_contiguous(memory_format=torch.channels_last)
    out, mask = PLAIN.activate(y, Epilogue(relu=False))
    assert mask is None
    assert out is y


def test_codes_are_spread_as_codes():
    codes = torch.randint(-128, 128, (2, 9, 2, 3), dtype=torch.int8)
    mask = PLAIN.activate(values(2, 9, 5, 7), Epilogue(relu=False, pool=2))[1]
    out = PLAIN.spread(codes, mask, Epilogue(relu=False, pool=2), (5, 7))
    assert out.dtype == torch.int8
    assert torch.equal(out.float(), PLAIN.spread(codes.float(), mask, Epilogue(relu=False, pool=2), (5, 7)))


@pytest.mark.parametrize("channels", CHANNELS)
def test_bits_are_packed_lowest_first_and_come_back(channels):
    positive = values(3, 5, channels) > 0
    bits = pack_bits(positive)
    assert (bits.dtype, bits.shape) == (torch.uint8, (3, 5, -(-channels // 8)))
    assert torch.equal(unpack_bits(bits, channels), positive)
    one = torch.zeros(channels, dtype=torch.bool)
    one[channels - 1] = True
    assert pack_bits(one).tolist() == [0] * ((channels - 1) // 8) + [1 << (channels - 1) % 8]


@pytest.mark.parametrize("pool", [0, 12])
def test_windows_that_int8_cannot_number_are_refused(pool):
    with pytest.raises(ValueError, match="pool must be 1 to 11"):
        Epilogue(relu=True, pool=pool)
