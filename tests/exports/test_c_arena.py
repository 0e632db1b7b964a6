"""The arena: tensors that live at once never share a byte, and little is left between them."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_exp.exports.c99 import arena as c_arena
from octo_exp.exports.c99.arena import Arena, Buffer, arena_of, live_bytes, place
from octo_exp.exports.c99.titles import over_of, scratch_bytes_of, sizes_of
from octo_exp.graph.operations import Step, steps_of
from octo_exp.graph.spec import Image, InputSpec, ModelSpec
from tests.graph.helpers import chain_of, conv_spec, pool_spec, tiny_model, tiny_resnet
from tests.graph.random_models import random_model

MODELS = [tiny_model, tiny_resnet, *(lambda seed=seed: random_model(seed) for seed in range(20))]
BUFFERS = st.lists(
    st.builds(
        Buffer,
        first=st.integers(0, 8),
        # What lives longer may shrink.
        sizes_bytes=st.lists(st.integers(1, 40), min_size=1, max_size=5).map(lambda s: tuple(sorted(s, reverse=True))),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200)
@given(buffers=BUFFERS)
def test_buffers_that_live_at_once_share_no_byte(buffers):
    places = place(buffers)
    end = max(offset + max(b.sizes_bytes) for b, offset in zip(buffers, places, strict=True))
    for step, live in enumerate(live_bytes(buffers)):
        owners = np.zeros(end, np.int64)
        for b, offset in zip(buffers, places, strict=True):
            if b.first <= step < b.first + len(b.sizes_bytes):
                owners[offset : offset + b.sizes_bytes[step - b.first]] += 1
        assert owners.max(initial=0) <= 1
        assert owners.sum() == live
    assert min(places) == 0
    assert max(live_bytes(buffers)) <= end <= sum(max(b.sizes_bytes) for b in buffers)


def test_the_largest_comes_first_and_the_tightest_gap_is_taken():
    buffers = [
        Buffer(first=1, sizes_bytes=(10,)),
        Buffer(first=0, sizes_bytes=(20, 20)),
        Buffer(first=0, sizes_bytes=(16,)),
        Buffer(first=0, sizes_bytes=(14, 14)),
        Buffer(first=0, sizes_bytes=(12,)),
        Buffer(first=0, sizes_bytes=(11, 11)),
    ]
    # Step 1 leaves gaps of 16 and 12 bytes.
    assert place(buffers) == [50, 0, 20, 36, 50, 62]
    # What shrinks makes room in its own place.
    assert place([Buffer(first=0, sizes_bytes=(30, 10)), Buffer(first=1, sizes_bytes=(25,))]) == [0, 10]


def simulated(spec: ModelSpec, arena: Arena, over: Callable[[Step], tuple[str, ...]] = over_of) -> None:
    """Run a graph on a memory of names: what is still to be read must lie there whole, or be written over as told."""
    steps, sizes = steps_of(spec), sizes_of(spec)
    memory, made = np.full(arena.size_bytes, "", object), set()

    def bytes_of(tensor: str) -> np.ndarray:
        offset = arena.offsets[tensor]
        assert 0 <= offset <= arena.size_bytes - sizes[tensor]
        return memory[offset : offset + sizes[tensor]]

    for i, step in enumerate(steps):
        later = {t for after in steps[i + 1 :] for t in after.reads}
        scratch, scratch_bytes = memory[:0], scratch_bytes_of(step)
        if scratch_bytes:
            scratch = memory[arena.scratch[step.name] :][:scratch_bytes]
            assert len(scratch) == scratch_bytes
            scratch[:] = "scratch"
        assert all((bytes_of(t) == t).all() for t in made & (later | set(step.reads)))
        if step is not steps[-1]:
            bytes_of(step.name)[:] = step.name
        for t in made & (later | set(step.reads)):
            shared = t in over(step) and t not in later and arena.offsets[t] == arena.offsets.get(step.name)
            assert shared or (bytes_of(t) == t).all()
        assert (scratch == "scratch").all()
        made |= {step.name} & arena.offsets.keys()


@pytest.mark.parametrize("model", MODELS)
def test_no_step_of_a_network_loses_what_is_read_later(model):
    spec = model()
    arena = arena_of(spec)
    assert [*arena.offsets] == [step.name for step in steps_of(spec)[:-1]]
    simulated(spec, arena)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_read_later_or_is_too_small_is_not_written_over(model, monkeypatch):
    spec = model()
    monkeypatch.setattr(c_arena, "over_of", lambda step: step.reads)
    simulated(spec, arena_of(spec), over=lambda step: step.reads)


@pytest.mark.parametrize("model", [tiny_model, tiny_resnet])
def test_where_more_is_written_over_less_is_needed(model, monkeypatch):
    needed = arena_of(model()).size_bytes
    monkeypatch.setattr(c_arena, "over_of", lambda step: step.reads)
    assert arena_of(model()).size_bytes < needed


def test_a_pool_and_an_addition_write_over_what_they_read():
    rng = np.random.default_rng(0)
    convs = chain_of(rng, Image(3, 32, 0.05, 0), {"outputs": 64, "kernel": 3})
    pool = pool_spec(convs[-1].gives, "max", 2, 2)
    image = convs[-1].gives._replace(size=pool.out_size)
    convs += chain_of(rng, image, {"outputs": 128, "kernel": 3})
    head = conv_spec(rng, convs[-1].gives, 4, 16, padding=0)
    arena = arena_of(ModelSpec(input=InputSpec(scale=0.05, zero=0), layers=(convs[0], pool, convs[1]), classifier=head))
    assert arena.offsets["layer0"] == arena.offsets["layer1"]
    # The first layer's image and a window of 3 x 3 x 3 codes: what the pool leaves of it is free again.
    assert arena.size_bytes == 32 * 32 * 64 + 27
    assert arena.peak.name == "layer0"
    block = tiny_model()
    add = next(step for step in steps_of(block) if step.name.endswith("add"))
    offsets = arena_of(block).offsets
    assert offsets[add.name] in {offsets[t] for t in add.reads}


def test_a_pool_with_a_border_does_not():
    spec = tiny_resnet()
    pool = steps_of(spec)[1]
    assert pool.part.padding > 0
    offsets, sizes = arena_of(spec).offsets, sizes_of(spec)
    ends = [offsets[t] + sizes[t] for t in (pool.name, *pool.reads)]
    assert offsets[pool.name] >= ends[1] or offsets[pool.reads[0]] >= ends[0]
