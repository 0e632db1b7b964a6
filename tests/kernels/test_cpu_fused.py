"""The compiled CPU path against the plain torch forms of the same operations, bit for bit."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from octo_exp.kernels import int8, ops
from octo_exp.kernels.cpu import backend as cpu_backend
from octo_exp.kernels.cpu import conv
from octo_exp.kernels.finish import Finish, Limits
from octo_exp.kernels.ops import ConvGeometry
from octo_exp.workload import Epilogue
from tests.kernels.test_integers import CONVS, codes

STEPS = [None, *(Epilogue(relu=relu, pool=pool) for relu, pool in ((True, 1), (False, 2), (True, 2), (True, 3)))]
WIDTHS = [
    *((c, 5, (3, 3), (7, 8), ConvGeometry(padding=(1, 1))) for c in (1, 3, 7, 16, 63, 65)),
    *((3, o, (3, 3), (8, 7), ConvGeometry(stride=(2, 2), padding=(1, 1))) for o in (1, 7, 16, 63, 65)),
    # More rows of accumulators than a block has.
    (3, 65, (3, 3), (20, 19), ConvGeometry(padding=(1, 1))),
    (16, 7, (1, 1), (6, 7), ConvGeometry()),
    (17, 3, (3, 3), (9, 9), ConvGeometry(dilation=(2, 2), padding=(2, 2))),
    (3, 4, (2, 3), (4, 5), ConvGeometry(padding=(3, 4))),
    (16, 4, (2, 3), (4, 5), ConvGeometry(padding=(3, 4))),
    # No window reaches the last rows and columns.
    (4, 3, (2, 2), (8, 9), ConvGeometry(stride=(3, 4))),
]


def bits_equal(a: torch.Tensor | None, b: torch.Tensor | None) -> None:
    assert (a is None) == (b is None)
    if a is not None:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)


def both(operation: str, *args: Any, **kwargs: Any) -> Any:
    """The compiled result, seen to equal the plain one."""
    results = [getattr(ops.backend(impl, "cpu"), operation)(*args, **kwargs) for impl in ("torch", "reference")]
    pairs = zip(*results, strict=True) if isinstance(results[0], tuple) else [results]
    for a, b in pairs:
        bits_equal(a, b)
    return results[0]


def steps_of(y: torch.Tensor, steps: Epilogue | None) -> torch.Tensor:
    """ReLU and pooling by torch's own functions."""
    y = F.relu(y) if steps is not None and steps.relu else y
    return F.max_pool2d(y, steps.pool) if steps is not None and steps.pool > 1 else y


def convolution(case: Any, images: int = 3) -> tuple[Any, ...]:
    c, o, kernel, size, geometry = case
    g = codes(images, o, *geometry.output_size(*size, kernel), seed=2)
    return codes(images, c, *size), codes(o, c // geometry.groups, *kernel, seed=1), g, geometry


def all_three(case: Any, images: int = 3) -> list[torch.Tensor]:
    """The three GEMMs of one convolution, compiled, in their fullest form; each is checked against the plain form."""
    x, w, g, geometry = convolution(case, images)
    scale, offset = torch.rand(w.shape[0]) * 1e-3, torch.randn(w.shape[0])
    steps = Epilogue(relu=True, pool=2)
    y = both("conv2d_scaled", x, w, geometry, -7, Finish(scale, offset, steps))
    dx = both("conv2d_grad_input_scaled", g, w, tuple(x.shape[2:]), geometry, scale=scale[0])
    dw = both("conv2d_grad_weight_scaled", x, g, tuple(w.shape[2:]), geometry, -7, Finish(scale[0], offset))
    return [*y, dx, dw]


def test_every_operation_has_a_compiled_form():
    names = ["quantize", "activate", "mask_gradient", "spread", "matmul_scaled", "scale_rows", "conv2d_scaled"]
    names += ["conv2d_grad_input_scaled", "conv2d_grad_weight_scaled", "float_conv2d_grad_weight", "matmul_grad_weight"]
    assert set(names) <= vars(type(ops.backend("torch", "cpu"))).keys()


@pytest.mark.parametrize("case", [*CONVS, *WIDTHS], ids=str)
def test_convolutions_with_every_epilogue_and_offset(case):
    x, w, _, geometry = convolution(case)
    outputs, size = w.shape[0], geometry.output_size(x.shape[2], x.shape[3], w.shape[2:])
    acc = ops.backend("reference", "cpu").int8_conv2d(x, w, geometry, pad_value=-7)
    scales = torch.tensor(3e-4), torch.rand(outputs) * 1e-3
    offsets = None, torch.randn(outputs), torch.randn(outputs, *size)
    for (scale, offset), steps in itertools.product(itertools.product(scales, offsets), STEPS):
        y, _ = both("conv2d_scaled", x, w, geometry, -7, Finish(scale, offset, steps))
        assert y.is_contiguous(memory_format=torch.channels_last)
        if y.numel() > 0:
            plain = acc * scale.reshape(-1, 1, 1)
            plain = plain if offset is None else plain + offset.reshape(outputs, *[1, 1, *offset.shape[1:]][-2:])
            bits_equal(y, steps_of(plain, steps))


@pytest.mark.parametrize("case", [*CONVS, *WIDTHS], ids=str)
def test_gradients_of_convolutions(case):
    x, w, g, geometry = convolution(case)
    dx = both("conv2d_grad_input_scaled", g, w, tuple(x.shape[2:]), geometry, scale=torch.tensor(3e-4))
    assert dx.shape == x.shape
    for pad, offset in itertools.product((0, -128, 127), (None, torch.randn(w.shape[0]))):
        finish = Finish(torch.tensor(3e-4), offset)
        dw = both("conv2d_grad_weight_scaled", x, g, tuple(w.shape[2:]), geometry, pad, finish)
        assert dw.shape == w.shape


@pytest.mark.parametrize("channels", [3, 16])
def test_every_pad_value(channels):
    x, w, g, geometry = convolution((channels, 2, (3, 3), (3, 3), ConvGeometry(padding=(1, 1))))
    finish = Finish(torch.tensor(1.0))
    for pad in (torch.tensor(-5, dtype=torch.int32), *range(-128, 128)):
        both("conv2d_scaled", x, w, geometry, pad, finish)
        both("conv2d_grad_weight_scaled", x, g, (3, 3), geometry, pad, finish)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_operands_may_have_any_layout(layout):
    x, w, g, geometry = convolution((7, 9, (3, 3), (8, 7), ConvGeometry(padding=(1, 1))))

    def laid(t: torch.Tensor) -> torch.Tensor:
        if layout == "strided":
            return t.repeat_interleave(2, 3)[..., ::2]
        return t.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)

    scale, offset = torch.tensor(1e-3), torch.randn(9)
    finish = Finish(scale, offset, STEPS[3])
    plain = ops.backend("reference", "cpu").conv2d_scaled(x, w, geometry, 3, finish)
    laid_out = both("conv2d_scaled", laid(x), laid(w), geometry, 3, finish)
    for a, b in zip(laid_out, plain, strict=True):
        bits_equal(a, b)
    both("conv2d_grad_input_scaled", laid(g), laid(w), (8, 7), geometry, scale=torch.tensor(1e-3))
    both("conv2d_grad_weight_scaled", laid(x), laid(g), (3, 3), geometry, 3, Finish(scale, offset))


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (7, 63, 1), (1, 7, 63), (63, 65, 7), (16, 16, 65), (65, 1, 16)])
def test_products_and_their_weight_gradient(m, k, n):
    a, b = codes(m, k), codes(k, n, seed=1)
    for scale, offset in itertools.product((torch.tensor(3e-4), torch.rand(n)), (None, torch.randn(n))):
        for steps in STEPS[:2]:
            both("matmul_scaled", a, b, Finish(scale, offset, steps))
            both("matmul_scaled", a.t().contiguous().t(), b.t().contiguous().t(), Finish(scale, offset, steps))
    for offset in (None, torch.randn(n)):
        dw = both("matmul_grad_weight", codes(m, n, seed=2), a, Finish(torch.tensor(3e-4), offset))
        assert dw.shape == (n, k)


def split(case: Any, monkeypatch: pytest.MonkeyPatch, column_bytes: int) -> tuple[list[torch.Tensor], list[Any]]:
    """(the results with so many bytes of columns, the columns that were made)."""
    made: list[Any] = []
    original = conv.Columns.__init__
    with monkeypatch.context() as patch:
        patch.setattr(conv, "CHUNK_BYTES", column_bytes)
        patch.setattr(conv.Columns, "__init__", lambda self, *a: (original(self, *a), made.append(self))[0])
        return all_three(case, images=7), made


@pytest.mark.parametrize("case", [CONVS[0], CONVS[3], WIDTHS[12]], ids=str)
def test_chunks_change_nothing_and_keep_the_columns_small(case, monkeypatch):
    torch.manual_seed(1)
    whole, columns = split(case, monkeypatch, 2**30)
    assert [len(c.chunks) for c in columns] == [1, 1, 1]
    image_bytes = [c.positions * c._buffer.shape[1] for c in columns]
    for images in (1, 2, 3, 6):
        torch.manual_seed(1)
        parts, columns = split(case, monkeypatch, images * max(image_bytes))
        for a, b in zip(parts, whole, strict=True):
            bits_equal(a, b)
        assert max(len(c.chunks) for c in columns) > 1
        for c, each in zip(columns, image_bytes, strict=True):
            assert [i for s in c.chunks for i in range(7)[s]] == list(range(7))
            assert all(c[s].nbytes < images * max(image_bytes) + each for s in c.chunks)
            assert c._buffer.nbytes < images * max(image_bytes) + each
    # Less than one image: one at a time.
    assert all(len(c.chunks) == 7 for c in split(case, monkeypatch, 1)[1])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_linear_weight_gradient_may_come_in_parts(rows, monkeypatch):
    monkeypatch.setattr(conv, "CHUNK_BYTES", rows * 4 * 9)
    g, x, offset = codes(7, 5), codes(7, 9, seed=1), torch.randn(5)
    both("matmul_grad_weight", g, x, Finish(torch.tensor(3e-4), offset))


def test_chunks_stay_within_the_bytes(monkeypatch):
    for images, each, limit in itertools.product(range(1, 20), (3, 5, 7), range(1, 80)):
        monkeypatch.setattr(conv, "CHUNK_BYTES", limit)
        assert all((s.stop - s.start) * each <= max(limit, each) for s in conv._chunks(images, each, 1))


def test_threads_change_no_bit():
    case = (17, 16, (3, 3), (32, 31), ConvGeometry(padding=(1, 1)))
    t, threads = torch.randn(3, 16, 64, 65), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            q = ops.backend("torch", "cpu").quantize(t, torch.tensor(0.02), torch.tensor(0.0), Limits(-127, 127))
            results.append([q, *all_three(case)])
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        bits_equal(a, b)


class _Poisoned:
    """torch, whose fresh tensors hold NaN or 77."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def _fill(t: torch.Tensor) -> torch.Tensor:
        return t.fill_(float("nan") if t.is_floating_point() else 77)

    def empty(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._fill(torch.empty(*args, **kwargs))

    def empty_like(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._fill(torch.empty_like(*args, **kwargs))


@pytest.mark.parametrize("case", WIDTHS, ids=str)
def test_what_fresh_memory_holds_changes_nothing(case, monkeypatch):
    for module in (conv, cpu_backend, int8):
        monkeypatch.setattr(module, "torch", _Poisoned())
    all_three(case)
    y = torch.randn(2, 9, 7, 8)
    for steps in STEPS[1:]:
        _, mask = both("activate", y, steps)
        g = torch.randn(2, 9, 7 // steps.pool, 8 // steps.pool)
        both("mask_gradient", g, mask, steps)
        if steps.pool > 1:
            both("spread", g, mask, steps, (7, 8))
    both("matmul_scaled", codes(7, 9), codes(9, 5), Finish(torch.tensor(0.1), steps=STEPS[1]))
    both("matmul_grad_weight", codes(7, 9), codes(7, 5), Finish(torch.tensor(0.1)))
    both("quantize", y, torch.tensor(0.1), torch.tensor(0.0), Limits(-127, 127))
