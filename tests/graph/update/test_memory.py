"""Acceptance check 11: the memory account to the bit."""

import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.graph.train.update.extra_memory import UpdateMemory, layer_memory, update_memory
from octo_exp.graph.train.update.selection import LayerRule, SparseUpdate
from tests.graph.update.helpers import GOLDEN, MODELS, Net, released_shapes, sparse
from tests.graph.update.test_configs import rule_of

TABLE = json.loads((GOLDEN / "memory_table.json").read_text())


def account(model: str, scheme: SparseUpdate) -> UpdateMemory:
    shapes = released_shapes(model)
    return update_memory(shapes, scheme.rules(shapes), head_inputs=shapes[-1].out_channels)


def scheme_of(row: str) -> SparseUpdate:
    model, name = row.split("/")
    if name.endswith("kb"):
        return rule_of(f"{MODELS[model]}_{name}").sparse
    if name == "fc":
        return SparseUpdate(**sparse(n_bias=0))
    kind, number = re.fullmatch(r"(last|bias)(\d+)", name).groups()
    return SparseUpdate(**sparse(n_bias=int(number), n_weight="all" if kind == "last" else 0))


@pytest.mark.parametrize("row", TABLE)
def test_every_row_of_the_table(row):
    total_kb, parameters_kb = TABLE[row]
    memory = account(row.split("/")[0], scheme_of(row))
    # Sums of powers of two: exact in a float.
    assert memory.bits == total_kb * 8192
    assert memory.kb == total_kb
    assert memory.parameters_kb == parameters_kb


def test_the_table_has_the_fifteen_schemes_and_their_labels():
    rows = [row for row in TABLE if row.endswith("kb")]
    assert len(rows) == 15
    for row in rows:
        assert math.floor(TABLE[row][0]) == int(row.split("/")[1].removesuffix("kb"))


def test_the_last_twelve_of_mcunet():
    assert account("mcunet-5fps", SparseUpdate(**sparse(n_bias=12))).kb == pytest.approx(448.047, abs=5e-4)


def test_values_of_weights_do_not_matter():
    rule, net = rule_of("full", "update.sparse.ratio=0.3"), Net()
    before = rule.memory(net)
    for conv in net.convs:
        conv.weight.data.zero_()
    assert rule.memory(net) == before


sizes = st.sampled_from([1, 7, 16, 63, 65])


@st.composite
def shapes_drawn(draw) -> LayerShape:
    groups = draw(st.sampled_from([1, 2, 16]))
    c_in, c_out = (groups * draw(st.sampled_from([1, 7, 16])) for _ in "io")
    pairs = [tuple(draw(sizes) for _ in "hw") for _ in range(3)]
    return LayerShape(
        in_channels=c_in, out_channels=c_out, groups=groups, kernel=pairs[0], in_size=pairs[1], out_size=pairs[2]
    )


@given(shape=shapes_drawn(), data=st.data())
def test_one_layer_by_its_tensors(shape, data):
    kept = data.draw(st.sampled_from([0, shape.in_channels]) if shape.grouped else st.integers(0, shape.in_channels))
    memory = layer_memory(shape, LayerRule(train_bias=True, kept=kept))
    kernel = math.prod(shape.kernel)
    whole = shape.out_channels * (shape.in_channels // shape.groups) * kernel
    one_channel = kernel if shape.depthwise else shape.out_channels * kernel
    assert memory.clamp_bits == shape.out_channels * math.prod(shape.out_size)
    assert memory.bias_bits == 32 * shape.out_channels
    assert memory.input_bits == 8 * kept * math.prod(shape.in_size)
    assert memory.weight_bits == 8 * (whole if kept == shape.in_channels else kept * one_channel)


def test_a_frozen_layer_needs_nothing():
    (shape, *_) = released_shapes("mcunet-5fps")
    assert layer_memory(shape, LayerRule(train_bias=False, kept=0)).bits == 0


@given(
    model=st.sampled_from(sorted(MODELS)),
    n_bias=st.lists(st.integers(0, 42), min_size=2, max_size=2).map(sorted),
    ratio=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
)
def test_more_layers_and_more_channels_need_more(model, n_bias, ratio):
    few, many = (SparseUpdate(**sparse(n_bias=n, ratio=r)) for n, r in zip(n_bias, ratio, strict=True))
    assert account(model, few).bits <= account(model, many).bits
    if n_bias[0] < n_bias[1]:
        assert account(model, few).bits < account(model, many).bits


def test_a_head_that_reads_more_than_one_pixel_saves_them_all():
    net = Net()
    net.head = torch.nn.Linear(7 * 9, 3)
    rule = rule_of("head_only")
    assert rule.memory(net).bits == 8 * 7 * 9
