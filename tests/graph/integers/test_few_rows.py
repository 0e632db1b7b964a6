"""Convolutions of few rows: the same codes as by GEMM, whatever the sizes; and the way around on other CPUs."""

import numpy as np
import pytest
import torch

from octo_exp.graph.integers import IntegerNet, fixed, integer_net
from octo_exp.kernels.cpu import few_rows
from tests.graph.integers.test_net import codes_for, one_layer

HAS_IT = pytest.mark.skipif(not few_rows.is_available(), reason="this CPU has no AVX-512 VNNI")


@HAS_IT
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 16, 17])
@pytest.mark.parametrize("k", [1, 7, 16, 63, 65, 512])
@pytest.mark.parametrize("outputs", [1, 7, 16, 31, 32, 65])
def test_sums_and_codes_are_exact(rows, k, outputs):
    rng = np.random.default_rng(rows * k)
    # Codes and weights at their ends as well: the instruction's own sums must not saturate.
    codes = rng.choice(np.int8([-128, 127, 1, -7]), (rows, k))
    weights = rng.choice(np.int8([-128, 127, 5]), (outputs, k))
    offset = rng.integers(-(2**20), 2**20, outputs).astype(np.int32)
    value = rng.integers(2**23, 2**24, outputs).astype(np.int32)
    shift = rng.integers(35, 42, outputs).astype(np.int32)
    made = np.full((rows, outputs), 99, np.int8)
    room = np.concatenate([codes.reshape(-1), np.full(few_rows.WORD, 77, np.int8)])
    few_rows.gemm(room, k, few_rows.packed(weights), offset, value, shift, 5, made)
    acc = codes.astype(np.int64) @ weights.astype(np.int64).T + offset
    acc = torch.tensor(acc).T.reshape(1, outputs, rows, 1)
    expected = fixed.requantize(acc, torch.tensor(value), torch.tensor(shift), 5)
    assert torch.equal(torch.tensor(made).T.reshape(1, outputs, rows, 1), expected)


def test_weights_are_packed_in_words_of_four():
    weights = np.arange(-60, 60, dtype=np.int8).reshape(20, 6)
    packed = few_rows.packed(weights)
    assert packed.shape == (1, 2, 32, 4)
    assert packed[0, 1, 3, 1] == int(weights[3, 5]) + 128
    assert not packed[0, 1, :, 2:].any()
    assert not packed[0, :, 20:].any()


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize("macs", [0, few_rows.MAX_MACS])
@pytest.mark.parametrize(("channels", "kernel", "stride", "padding"), [(3, 3, 1, 1), (7, 3, 2, 1), (16, 1, 1, 0)])
def test_every_way_gives_the_same_codes(available, macs, channels, kernel, stride, padding, monkeypatch):
    if available and not few_rows.is_available():
        pytest.skip("this CPU has no AVX-512 VNNI")
    spec = one_layer(channels, channels, 9, 33, kernel, stride=stride, padding=padding)
    expected = list(IntegerNet(spec).outputs(codes_for(spec)))
    calls = []
    if available:
        conv = few_rows.conv
        monkeypatch.setattr(few_rows, "conv", lambda *arguments: calls.append(1) or conv(*arguments))
    monkeypatch.setattr(few_rows, "is_available", lambda: available)
    monkeypatch.setattr(few_rows, "MAX_MACS", macs)
    assert all(map(torch.equal, IntegerNet(spec).outputs(codes_for(spec)), expected))
    # The classifier has three rows, the convolution more.
    assert len(calls) == (0 if not available else 1 if macs == 0 else 2)


@pytest.mark.parametrize("assign", [True, False])
def test_a_net_that_was_moved_or_loaded_computes_with_its_new_weights(assign):
    first, second = (IntegerNet(one_layer(seed, 3, 8, 4, 3)) for seed in (0, 0))
    codes = codes_for(first.spec)
    before = first.classify(codes)
    state = {name: t.clone() for name, t in first.state_dict().items()}
    state["layers.0.weight"] = -state["layers.0.weight"].clamp(min=-127)
    second.classify(codes)
    second.load_state_dict(state, assign=assign)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer_net, "_has_loops", lambda codes: False)
        expected = second.classify(codes)
    assert not torch.equal(expected, before)
    assert torch.equal(second.classify(codes), expected)


@pytest.mark.parametrize(("named", "available"), [(None, True), ("sapphirerapids", True), ("haswell", False)])
def test_the_instruction_is_used_where_numba_compiles_for_it(named, available, monkeypatch):
    monkeypatch.setattr(few_rows.binding, "get_host_cpu_name", lambda: "sapphirerapids")
    monkeypatch.setattr(few_rows.binding, "get_host_cpu_features", lambda: {"avx512vnni": True})
    monkeypatch.setattr(few_rows.config, "CPU_NAME", named, raising=False)
    assert few_rows.is_available.__wrapped__() is available
