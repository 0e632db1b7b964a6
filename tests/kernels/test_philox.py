import pytest
import torch

from octo_exp.kernels import ops
from octo_exp.kernels.cpu import noise
from octo_exp.kernels.finish import Limits
from octo_exp.kernels.plain import philox
from octo_exp.kernels.plain.philox import LOW_WORD, uniform
from octo_exp.quant.rounding import keyed_seed

np = pytest.importorskip("numpy")

# Known answers of Random123's test vectors for philox4x32, 10 rounds: (counter, key, result).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((LOW_WORD,) * 4, (LOW_WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = [0, 1, 2**31, 2**32, 2**63 - 1, keyed_seed(0, 1, "layer", "x")]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers_in_integers_and_in_tensors(counter, key, result):
    assert philox.philox(counter, key) == result
    words = philox.philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(word) for word in words) == result


def expected(seed: int, i: int) -> float:
    """Return the noise of one counter, in Python's integers."""
    word = philox.philox((i & LOW_WORD, i >> 32, 0, 0), (seed & LOW_WORD, seed >> 32))[0]
    return float(np.float32(min(word, LOW_WORD - word)) * np.float32(4.6566127342e-10))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("start", [0, 5, 2**31 - 3, 2**32 - 3, 2**40])
def test_noise_is_a_function_of_seed_and_counter(seed, start):
    out = uniform(seed, 7, "cpu", start)
    assert out.dtype == torch.float32
    assert out.tolist() == [expected(seed, start + i) for i in range(7)]
    loop = [noise.uniform(np.uint64(start + i), np.uint64(seed)) for i in range(7)]
    assert torch.equal(torch.tensor(np.array(loop, dtype=np.float32)), out)


def test_counters_past_32_bits_do_not_start_again():
    assert not torch.equal(uniform(3, 16, "cpu", 2**32), uniform(3, 16, "cpu"))


def test_all_words_of_a_seed_count():
    assert len({tuple(uniform(seed, 4, "cpu").tolist()) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("count", [0, 1, 7, 16, 63, 65])
def test_chunks_change_nothing(monkeypatch, count):
    whole = uniform(9, count, "cpu", 11)
    monkeypatch.setattr(philox, "CHUNK", 16)
    assert torch.equal(uniform(9, count, "cpu", 11), whole)
    assert whole.shape == (count,)


def test_the_largest_noise_is_below_one():
    unit = torch.tensor(philox.UNIT, dtype=torch.float32)
    assert unit == torch.tensor(4.6566127342e-10)
    assert torch.tensor(2.0**31) * unit < 1


def test_noise_is_uniform_and_independent_among_seeds():
    count, bins = 2**16, 64
    a, b = uniform(keyed_seed(0, 1, "a", "x"), count, "cpu"), uniform(keyed_seed(0, 2, "a", "x"), count, "cpu")
    assert 0 <= a.min() < a.max() < 1
    observed = torch.histc(a, bins, 0, 1)
    # Chi-square with 63 degrees of freedom: mean 63, standard deviation sqrt(2 * 63) = 11.2; five of them.
    assert ((observed - count / bins) ** 2 / (count / bins)).sum() < 63 + 5 * 11.2
    # Correlations of count independent pairs have a standard deviation of 1 / sqrt(count) = 0.0039; four of them.
    for first, second in ((a, b), (a[1:], a[:-1]), (a[64:], a[:-64])):
        assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.016


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("value", [-3.7, -0.5, 0.0, 0.1, 0.5, 2.9])
def test_stochastic_rounding_has_the_value_as_its_mean(impl, value):
    count = 20_000
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    limits = Limits(-127, 127, seed=5)
    q = ops.backend(impl, "cpu").quantize(torch.full((count,), value), one, zero, limits).double()
    share = value - value // 1
    # Four standard errors of a Bernoulli mean.
    assert abs(q.mean() - value) <= 4 * (share * (1 - share) / count) ** 0.5 + 1e-7
    assert set(q.tolist()) <= {value // 1, value // 1 + 1}


@pytest.mark.parametrize("size", [1, 7, 16, 63, 65, 40_000])
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_compiled_loop_draws_what_the_plain_form_draws(size, seed):
    t = torch.randn(size)
    limits = Limits(-128, 127, torch.tensor(-1.5), torch.tensor(2.0), seed)
    plain, compiled = (
        ops.backend(impl, "cpu").quantize(t, torch.tensor(0.02), torch.tensor(3.0), limits)
        for impl in ("reference", "torch")
    )
    assert torch.equal(plain, compiled)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_elements_are_counted_in_the_order_of_memory(impl):
    scale, zero = torch.tensor(0.02), torch.tensor(0.0)

    def codes(t: torch.Tensor) -> torch.Tensor:
        return ops.backend(impl, "cpu").quantize(t, scale, zero, Limits(-127, 127, seed=4))

    t = torch.randn(2, 7, 5, 3)
    rows = codes(t.permute(0, 2, 3, 1).contiguous())
    assert torch.equal(codes(t.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1), rows)
    # Not dense: in logical order.
    assert torch.equal(codes(t.repeat(1, 2, 1, 1)[:, ::2]), codes(t.repeat(1, 2, 1, 1)[:, ::2].contiguous()))
