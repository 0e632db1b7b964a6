"""The compiled loops by themselves: whole and broken vectors, bits, sums, and nothing written beyond."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from octo_exp.graph.train import cpu_backward, cpu_forward
from octo_exp.graph.train.constants import ConvConstants
from octo_exp.kernels.cpu import graph_depthwise, graph_loops
from octo_exp.kernels.ops import ConvGeometry
from tests.graph.helpers import Case, brute_force, conv_case
from tests.graph.test_ops import run

CHANNELS = [1, 7, 16, 63, 65]
PIXELS = [1, 7, 16, 63]


def with_room(values: np.ndarray, fill: float) -> tuple[np.ndarray, np.ndarray]:
    """(an array of that shape and type with 32 elements after it, those elements), all of them `fill`."""
    flat = np.full(values.size + 32, fill, values.dtype)
    return flat[: values.size].reshape(values.shape), flat[values.size :]


def packed(inside: np.ndarray) -> np.ndarray:
    return np.packbits(inside, axis=1, bitorder="little")


@pytest.mark.parametrize("acc_type", [np.int32, np.float32])
@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_rescale_is_its_equation_and_packs_what_the_clamp_passes(channels, pixels, acc_type):
    rng = np.random.default_rng(channels * pixels)
    n = channels * pixels
    acc = rng.integers(-30_000, 30_000, (3, n)).astype(acc_type)
    shift = rng.integers(-300, 300, channels).astype(acc_type)
    bias, scale = rng.normal(size=channels).astype(np.float32) * 99, rng.random(channels).astype(np.float32) / 99
    t = np.rint(((acc - np.tile(shift, pixels)).astype(np.float32) + np.tile(bias, pixels)) * np.tile(scale, pixels))
    t += np.float32(5)
    inside = (t >= -128) & (t <= 127)
    codes, after = with_room(np.empty((3, n), np.int8), 99)
    bits, bits_after = with_room(np.empty((3, -(-n // 8)), np.uint8), 99)
    graph_loops.rescale(acc, shift, bias, scale, np.float32(5), codes, bits)
    assert np.array_equal(codes, t.clip(-128, 127))
    assert np.array_equal(bits, packed(inside))
    assert (after == 99).all()
    assert (bits_after == 99).all()
    codes[:] = 0
    graph_loops.rescale(acc, shift, bias, scale, np.float32(5), codes, np.empty((3, 0), np.uint8))
    assert np.array_equal(codes, t.clip(-128, 127))


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_masks_scale_and_sum(channels, pixels):
    rng = np.random.default_rng(channels * pixels)
    n = channels * pixels
    # Whole numbers and a power of two: every sum is exact.
    g = rng.integers(-8, 9, (2, n)).astype(np.float32)
    inside, scale = rng.random((2, n)) > 0.3, (2.0 ** rng.integers(-3, 3, channels)).astype(np.float32)
    want = g * inside * np.tile(scale, pixels)
    h, after = with_room(np.empty((2, n), np.float32), 99)
    sums = np.empty((2, channels))
    graph_loops.mask_and_scale(g, packed(inside), scale, h, sums)
    assert np.array_equal(h, want)
    assert np.array_equal(sums, want.reshape(2, pixels, channels).sum(1))
    assert (after == 99).all()
    second, after = with_room(np.empty((2, n), np.float32), 99)
    graph_loops.mask_and_scale_twice(g, packed(inside), np.float32(2), np.float32(-0.5), h, second)
    assert np.array_equal(h, g * inside * 2)
    assert np.array_equal(second, g * inside * -0.5)
    assert (after == 99).all()


@pytest.mark.parametrize("n", [1, 7, 16, 63, 65, 2**14 + 9])
def test_codes_come_and_go(n):
    x = np.random.default_rng(n).integers(-256, 255, n).astype(np.float32) / 2
    codes, after = with_room(np.empty(n, np.int8), 99)
    graph_loops.codes_of(x, codes)
    assert np.array_equal(codes, np.rint(x))
    assert (after == 99).all()
    floats, after = with_room(np.empty(n, np.float32), 99)
    graph_loops.centred(codes, -128, floats)
    assert np.array_equal(floats, codes.astype(np.float32) + 128)
    assert (after == 99).all()


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (7, 16), (63, 65)])
def test_sums_of_rows(outputs, inputs):
    w = np.full((outputs, inputs), -128, np.int8)
    w[0] = 127
    out = np.empty(outputs, np.int32)
    graph_loops.row_sums(w, -128, out)
    assert np.array_equal(out, -128 * w.sum(1, dtype=np.int64))


# Other paddings, kernels beyond the image, and strides beyond the kernel: borders without an output.
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (9, 16)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (3, 3)])
@pytest.mark.parametrize(("kernel", "stride"), [((1, 1), 1), ((1, 1), 2), ((3, 3), 1), ((3, 5), 2), ((2, 4), 3)])
@pytest.mark.parametrize("channels", [7, 16, 65])
def test_depthwise_loops_with_any_padding(channels, kernel, stride, padding, size):
    if any(s + 2 * p < k for s, p, k in zip(size, padding, kernel, strict=True)):
        pytest.skip("no output")
    shape = {"channels": (channels,) * 2, "groups": channels, "kernel": kernel, "stride": 1, "size": (20, 20)}
    base = conv_case(3, n=1, **shape)
    geometry = ConvGeometry(stride=(stride,) * 2, padding=padding, groups=channels)
    rng = np.random.default_rng(0)

    def whole(low: int, high: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(rng.integers(low, high + 1, shape).astype(np.float32))

    case = replace(
        base,
        x=whole(-128, 127, (2, channels, *size)),
        g=whole(-8, 8, (2, channels, *geometry.output_size(*size, kernel))),
        constants=replace(base.constants, geometry=geometry),
    )
    expected = brute_force(case)
    for name, got in zip(("y", "x", "w", "b"), run(case, "integer"), strict=True):
        assert torch.equal(got.double(), torch.from_numpy(getattr(expected, name)).double()), name


@pytest.mark.parametrize("side", [22, 23])
def test_depthwise_sums_are_exact_on_either_side_of_float32(side):
    """484 taps sum exactly in float32, 529 of the extreme codes do not: those take the way of int32."""
    assert (side**2 <= graph_depthwise.MAX_TAPS) == (side == 22)
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(-127 + rng.integers(0, 2, (2, 1, side, side))).float()
    total = -255 * weight.double().sum((1, 2, 3))
    # The bias takes away what a float32 holds of it, so that single units are the output.
    bias = -total.float()
    geometry = ConvGeometry(padding=(0, 0), groups=2)
    constants = ConvConstants(geometry=geometry, in_channels=2, scale=torch.ones(2), x_zero=127, y_zero=0)
    x = torch.full((1, 2, side, side), -128.0)
    y, _ = cpu_forward.forward(cpu_forward.enter(x), weight, bias, constants, want_bits=False)
    want = brute_force(Case(x=x, w=weight, b=bias, g=torch.zeros(1, 2, 1, 1), constants=constants)).y
    assert torch.equal(y.double(), torch.from_numpy(want).double())


@pytest.mark.parametrize("parts", [2, 3])
def test_no_bit_depends_on_how_images_are_shared(parts, monkeypatch):
    shape = {"channels": (17, 17), "groups": 17, "kernel": 3, "stride": 2, "size": (9, 7)}
    case = conv_case(1, n=5, **shape)
    case = replace(case, g=torch.randn_like(case.g))
    whole = run(case, "integer")
    for module in (cpu_forward, cpu_backward):
        monkeypatch.setattr(module, "parts_of", lambda n: parts)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(case, "integer"), strict=True))
