"""Random networks of every operation, quantised, and random graphs, as C: its integers are the graph's."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octo_exp.graph.integers import IntegerNet
from tests.exports.c_helpers import KINDS, Part, answers, quantized, random_codes
from tests.graph.random_models import random_model

PARTS = st.lists(
    st.builds(
        Part,
        kind=st.sampled_from(KINDS),
        channels=st.integers(1, 20),
        kernel=st.sampled_from([1, 2, 3, 5]),
        stride=st.integers(1, 3),
        padded=st.booleans(),
        relu=st.booleans(),
    ),
    min_size=1,
    max_size=5,
)
NETWORKS = {
    "channels": st.sampled_from([1, 3, 7]),
    "side": st.integers(5, 16),
    "parts": PARTS,
    "hidden": st.sampled_from([0, 17]),
    "symmetric": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
}
QUIET = {"suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


def check(channels, side, parts, hidden, symmetric, seed):
    torch.manual_seed(seed)
    net = quantized(channels, side, parts, hidden, symmetric=symmetric)
    codes = random_codes(net.spec, 16)
    with tempfile.TemporaryDirectory() as folder:
        assert torch.equal(answers(net, codes, Path(folder)), net.classify(codes))


@settings(max_examples=25, **QUIET)
@given(**NETWORKS)
def test_a_random_network_gives_equal_integers(**network):
    check(**network)


@pytest.mark.slow
@settings(max_examples=200, **QUIET)
@given(**NETWORKS)
def test_many_random_networks_give_equal_integers(**network):
    check(**network)


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 60))])
def test_a_random_graph_gives_equal_integers(seed, tmp_path):
    net = IntegerNet(random_model(seed))
    codes = random_codes(net.spec, 16)
    assert torch.equal(answers(net, codes, tmp_path), net.classify(codes))
