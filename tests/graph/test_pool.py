"""Pools against brute force, window by window, in both arithmetics: codes, gradients, and what they keep."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.parts import PoolSpec
from octo_exp.graph.train import chains
from octo_exp.graph.train.pool import Pool, forward
from tests.graph.helpers import MODES

# kind, kernel, stride, padding, side.
WINDOWS = [
    ("max", 1, 1, 0, 1),
    ("max", 2, 2, 0, 7),
    ("max", 3, 2, 1, 16),
    ("max", 3, 1, 1, 5),
    ("max", 5, 3, 2, 9),
    ("max", 16, 16, 0, 16),
    ("max", 13, 1, 6, 16),
    ("max", 17, 1, 8, 17),
    ("average", 1, 1, 0, 7),
    ("average", 2, 2, 0, 7),
    ("average", 3, 1, 0, 6),
    ("average", 7, 7, 0, 7),
    ("average", 2, 3, 0, 9),
]
SHAPES = [(1, 1), (2, 7), (3, 16), (1, 63), (2, 65)]


def brute_force(x: np.ndarray, g: np.ndarray, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """(y, grad_x), in float64."""
    y, dx, p = np.zeros(g.shape), np.zeros(x.shape), pool.padding
    for oh, ow in np.ndindex(*g.shape[2:]):
        top, left = oh * pool.stride - p, ow * pool.stride - p
        window = np.s_[max(top, 0) : top + pool.kernel, max(left, 0) : left + pool.kernel]
        for n, c in np.ndindex(*x.shape[:2]):
            codes, share = x[n, c][window], dx[n, c][window]
            if pool.kind == "average":
                y[n, c, oh, ow] = np.rint(codes.mean())
                share += g[n, c, oh, ow] / codes.size
            else:
                y[n, c, oh, ow] = codes.max()
                # argmax is the first, row by row.
                share[np.unravel_index(codes.argmax(), codes.shape)] += g[n, c, oh, ow]
    return y, dx


def case_of(shape: tuple[int, int], window: tuple, *, codes: int) -> tuple[Tensor, Tensor, Pool]:
    """x, g and the pool; few codes are many ties. Gradients are whole multiples of what an even share divides by."""
    kind, kernel, stride, padding, side = window
    rng, out = np.random.default_rng(kernel), (side + 2 * padding - kernel) // stride + 1
    x = rng.integers(-128, codes - 128, (*shape, side, side))
    g = rng.integers(-8, 9, (*shape, out, out)) * (kernel**2 if kind == "average" else 1)
    pool = Pool(kind=kind, kernel=kernel, stride=stride, padding=padding)
    return torch.from_numpy(x).float(), torch.from_numpy(g).float(), pool


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("codes", [1, 3, 256])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_pool_and_its_gradient_equal_brute_force(window, codes, mode):
    for shape in SHAPES[:2] if window[1] > 10 else SHAPES:
        x, g, pool = case_of(shape, window, codes=codes)
        x.requires_grad_()
        y = chains.run_chain(x, [pool], mode=mode)
        y.backward(g)
        want_y, want_dx = brute_force(x.detach().numpy(), g.numpy(), pool)
        assert torch.equal(y.detach().double(), torch.from_numpy(want_y))
        assert torch.equal(x.grad.double(), torch.from_numpy(want_dx))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_float_pools_with_straight_through_rounding(mode):
    x = torch.randint(-128, 128, (3, 5, 11, 11)).float()
    for kind, float_pool in (("max", lambda t: F.max_pool2d(t, 3, 2, 1)), ("average", lambda t: F.avg_pool2d(t, 3, 2))):
        a, b = x.clone().requires_grad_(), x.double().requires_grad_()
        y = chains.run_chain(a, [Pool(kind=kind, kernel=3, stride=2, padding=int(kind == "max"))], mode=mode)
        z = float_pool(b)
        g = torch.randn(y.shape)
        y.backward(g)
        (z + (z.round() - z).detach()).backward(g.double())
        assert torch.equal(y.double(), z.round())
        # A share is rounded, then at most nine of them are added.
        assert ((a.grad - b.grad).abs() <= 10 * 2.0**-24 * 9 * g.abs().max()).all()


@pytest.mark.parametrize("mode", MODES)
def test_halves_go_to_even(mode):
    x = torch.tensor([1, 2, 2, 3, -1, -2, -3, -2]).float().reshape(1, 4, 1, 2)
    pool = Pool(kind="average", kernel=1, stride=1, padding=0)
    assert torch.equal(chains.run_chain(x, [pool], mode=mode), x)
    squares = x.repeat_interleave(2, 2)
    y = chains.run_chain(squares, [Pool(kind="average", kernel=2, stride=2, padding=0)], mode=mode)
    assert y.flatten().tolist() == [2, 2, -2, -2]


@pytest.mark.parametrize("side", [1, 3, 7, 13])
def test_every_sum_of_a_window_is_rounded_as_a_fraction(side):
    """A window of every possible sum: the float division never moves a tie or makes one."""
    sums = np.arange(-128 * side**2, 127 * side**2 + 1)
    low = np.floor_divide(sums, side**2)
    codes = np.repeat(low[:, None], side**2, 1) + (np.arange(side**2) < (sums - low * side**2)[:, None])
    x = torch.from_numpy(codes.reshape(-1, 1, side, side)).to(torch.int8)
    y, _ = forward(x, Pool(kind="average", kernel=side, stride=side, padding=0), want_positions=False)
    twice, odd = np.divmod(2 * sums + side**2, 2 * side**2)
    tie = (odd == 0) & (twice % 2 == 1)
    assert y.dtype == torch.int8
    assert np.array_equal(y.flatten().numpy(), twice - tie)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kernel", "dtype"), [(16, torch.uint8), (17, torch.int32)])
def test_only_positions_are_kept_and_only_for_gradients(mode, kernel, dtype):
    kept: list[Tensor] = []
    x = torch.zeros(2, 3, 34, 34)
    pools = [Pool(kind="max", kernel=kernel, stride=kernel, padding=0)]
    pools.append(Pool(kind="average", kernel=34 // kernel, stride=1, padding=0))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        chains.run_chain(x, pools, mode=mode)
        assert not kept
        chains.run_chain(x.requires_grad_(), pools, mode=mode)
    assert [(t.dtype, tuple(t.shape)) for t in kept] == [(dtype, (2, 3, 2, 2))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "median"}, "kind must be one of max, average"),
        ({"kernel": 0}, "sizes must be ints"),
        ({"stride": True}, "sizes must be ints"),
        ({"padding": -1}, "padding must be ints"),
        ({"padding": 2, "out_size": 6}, "at most half its kernel"),
        ({"kind": "average", "padding": 1, "out_size": 5}, "no padding"),
        ({"out_size": 5}, "gives 4x4, the file says 5"),
        ({"kernel": 9}, "smaller than kernel"),
    ],
)
def test_wrong_pools_are_refused(changes, message):
    options = {"kind": "max", "channels": 2, "in_size": 8, "out_size": 4, "kernel": 2, "stride": 2, "padding": 0}
    PoolSpec(**options)
    with pytest.raises(UserError, match=message):
        PoolSpec(**options | changes)
