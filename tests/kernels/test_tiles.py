"""The GEMM of widened codes: exact in every layout, at every size, within its arrays; and where it is taken."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_exp.kernels import int8, ops
from octo_exp.kernels.cpu import conv, tiles

HAS_IT = pytest.mark.skipif(not tiles.is_available(), reason="numba compiles for a CPU without vpmaddwd here")
FENCE = -(2**31) + 77
BLOCKS = (tiles.ROWS, tiles.LANES, tiles.BLOCK_ROWS, tiles.BLOCK_COLUMNS, tiles.DEPTH)


@pytest.fixture
def by_tiles(monkeypatch):
    monkeypatch.setattr(int8, "int_mm_pays", lambda device_type: False)


def matrix(rows, columns, layout, seed):
    """Codes of any value, many of them the extreme ones; a part of a larger matrix, or as layout says."""
    draw = np.random.default_rng(seed)
    wide = draw.integers(-128, 128, (rows + 3, columns + 3), dtype=np.int8)
    wide[draw.random(wide.shape) < 0.3] = -128
    part = torch.from_numpy(wide)[1 : rows + 1, 2 : columns + 2]
    return {
        "part": part,
        "whole": part.contiguous(),
        "turned": part.t().contiguous().t(),
        "turned part": torch.from_numpy(np.ascontiguousarray(wide.T)).t()[1 : rows + 1, 2 : columns + 2],
        "every other": part.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2],
        "one row again": part[:1].expand(rows, columns),
    }[layout]


LAYOUTS = ["part", "whole", "turned", "turned part", "every other", "one row again"]
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([n + d for n in BLOCKS for d in (-1, 0, 1)]))


@HAS_IT
@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(SIZES, SIZES, SIZES),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    seed=st.integers(0, 99),
)
def test_sums_are_exact_and_nothing_else_is_written(size, layouts, seed):
    (m, k, n), patch = size, pytest.MonkeyPatch()
    a, b = matrix(m, k, layouts[0], seed), matrix(k, n, layouts[1], seed + 1)
    fenced = torch.full((m * n + 64,), FENCE, dtype=torch.int32)
    with patch.context() as context:
        context.setattr(int8, "int_mm_pays", lambda device_type: False)
        made = conv.multiply(a, b, fenced[32 : 32 + m * n].view(m, n))
    assert torch.equal(made.double(), a.double() @ b.double())
    assert set(fenced[:32].tolist() + fenced[32 + m * n :].tolist()) == {FENCE}


@HAS_IT
@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_a_product_without_elements(by_tiles, shape):
    m, k, n = shape
    a, b = torch.zeros((m, k), dtype=torch.int8), torch.zeros((k, n), dtype=torch.int8)
    assert torch.equal(conv.multiply(a, b), torch.zeros((m, n), dtype=torch.int32))
    # What a buffer held before is no sum.
    assert conv.multiply(a, b, torch.full((m, n), FENCE, dtype=torch.int32)).count_nonzero() == 0


@HAS_IT
def test_the_longest_sum_is_exact(by_tiles):
    a = torch.full((1, ops.MAX_K), -128, dtype=torch.int8)
    assert conv.multiply(a, a.t()).item() == ops.MAX_K * 128 * 128


@HAS_IT
@pytest.mark.parametrize("integers", [True, False])
def test_they_stand_in_where_torch_has_no_int8_instruction(by_tiles, monkeypatch, integers):
    monkeypatch.setattr(int8, "matmul", lambda *_, **__: pytest.fail("torch was asked"))
    cpu = ops.backend("torch", "cpu")
    assert cpu.multiplier == "int8 (vpmaddwd)"
    a, b = matrix(5, 7, "whole", 0), matrix(7, 9, "whole", 1)
    for made in (conv.multiply(a, b, integers=integers), cpu.int8_matmul(a, b)):
        assert torch.equal(made.long(), a.long() @ b.long())


@pytest.mark.parametrize("pays", [True, False])
def test_torch_multiplies_where_it_is_better_or_alone(monkeypatch, pays):
    monkeypatch.setattr(int8, "int_mm_pays", lambda device_type: pays)
    monkeypatch.setattr(tiles, "is_available", lambda: pays)
    monkeypatch.setattr(conv, "_gemm", lambda *_: pytest.fail("tiles were asked"))
    a, b = matrix(5, 7, "whole", 0), matrix(7, 9, "whole", 1)
    assert torch.equal(conv.multiply(a, b).long(), a.long() @ b.long())


@pytest.mark.parametrize(
    ("triple", "features", "named", "flags", "expected"),
    [
        ("x86_64-linux-gnu", {"avx2": True}, None, None, 32),
        ("x86_64-linux-gnu", {"avx2": True, "avx512bw": True}, None, None, 64),
        ("x86_64-linux-gnu", {"avx2": True, "avx512bw": True}, "haswell", None, 32),
        ("x86_64-linux-gnu", {"avx2": True}, "nehalem", None, 0),
        ("x86_64-linux-gnu", {"avx2": True}, None, "-avx2", 0),
        ("x86_64-linux-gnu", {}, None, None, 0),
        ("x86_64-linux-gnu", {}, "haswell", None, 0),
        ("aarch64-linux-gnu", {"neon": True}, None, None, 0),
    ],
)
def test_only_where_numba_compiles_for_it(monkeypatch, triple, features, named, flags, expected):
    monkeypatch.setattr(tiles.binding, "get_default_triple", lambda: triple)
    monkeypatch.setattr(tiles.binding, "get_host_cpu_name", lambda: "this")
    monkeypatch.setattr(tiles.binding, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(tiles.config, "CPU_NAME", named, raising=False)
    monkeypatch.setattr(tiles.config, "CPU_FEATURES", flags, raising=False)
    assert tiles._bytes_at_once() == expected
