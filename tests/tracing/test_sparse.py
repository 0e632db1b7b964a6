"""A sparse update trains a share of a layer's input channels: fewer MACs in grad_weight, less gradient and state."""

import pytest
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.tracing import OptimizerCost
from tests.tracing.helpers import roles, shapes, traced

MOMENTUM = OptimizerCost(operations=2, state_bytes=4)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 10, 3),
        nn.Conv2d(10, 6, 3, groups=2),
        nn.Conv2d(6, 12, 3, groups=6, padding=1),
        nn.Flatten(),
        nn.Linear(12 * 4, 7),
    )


def sparse(**shares):
    return traced(net(), (3, 6, 6), sparse={name.removeprefix("layer"): share for name, share in shares.items()})


def held(workload, layer, kind):
    # Of a layer's gradients those that live until the update are its parameters'.
    end = max(buffer.last for buffer in workload.buffers)
    return sum(b.bytes for b in workload.buffers if (b.layer, b.kind, b.last) == (layer, kind, end))


def updated(workload, layer):
    return [work.operations for work in workload.vector if (work.layer, work.kind) == (layer, "optimizer")]


# 5 input channels a group.
@pytest.mark.parametrize(("share", "channels"), [(1.0, 5), (0.999, 4), (0.6, 3), (0.59, 2), (0.2, 1)])
def test_the_share_of_the_input_channels_is_rounded_down(share, channels):
    workload = sparse(layer1=share)
    full = sparse()
    assert shapes(workload, "1")["grad_weight"] == (channels * 9, 3, 2 * 2 * 2, 2)
    for role in ("output", "grad_input"):
        assert workload.of_role(role) == full.of_role(role)
    # Weights of 3 output channels in each of 2 groups, and the bias.
    assert held(workload, "1", "gradient") == 4 * (2 * 3 * channels * 9 + 6)
    assert updated(workload, "1") == [2 * 3 * channels * 9 + 6]
    (read,) = {gemm.elements_a for gemm in workload.of_role("grad_weight") if gemm.layer == "1"}
    # 16 positions of two images are all read.
    assert read == 2 * 16 * channels


@pytest.mark.parametrize(("share", "channels"), [(1.0, 6), (0.99, 5), (0.5, 3), (0.17, 1)])
def test_a_depthwise_layer_trains_a_share_of_its_channels(share, channels):
    workload = sparse(layer2=share)
    assert shapes(workload, "2")["grad_weight"] == (9, 2, 2 * 4, channels)
    assert held(workload, "2", "gradient") == 4 * (channels * 2 * 9 + 12)


@pytest.mark.parametrize(("share", "features"), [(1.0, 48), (0.5, 24), (0.49, 23)])
def test_a_linear_layer_trains_a_share_of_its_features(share, features):
    assert shapes(sparse(layer4=share), "4")["grad_weight"] == (features, 7, 2, 1)


@pytest.mark.parametrize(("layer", "share", "bias"), [("1", 0.0, 6), ("1", 0.19, 6), ("2", 0.16, 12), ("4", 0.02, 7)])
def test_where_no_channel_is_left_the_bias_is_trained_alone(layer, share, bias):
    workload = traced(net(), (3, 6, 6), sparse={layer: share}, optimizer=MOMENTUM)
    assert roles(workload)[layer] == ["output", "grad_input"]
    assert held(workload, layer, "gradient") == 4 * bias
    assert held(workload, layer, "optimizer") == 4 * bias
    assert updated(workload, layer) == [2 * bias]
    assert [w.operations for w in workload.vector if w.layer == layer and w.role == "grad_weight"][:1] == [
        workload.of_role("output")[["0", "1", "2", "4"].index(layer)].m * bias
    ]


def test_macs_gradients_and_state_fall_with_the_share():
    found = []
    for percent in range(0, 101, 5):
        workload = traced(
            net(), (3, 6, 6), sparse=dict.fromkeys(("0", "1", "2", "4"), percent / 100), optimizer=MOMENTUM
        )
        found.append(
            (
                workload.macs,
                sum(held(workload, layer, "gradient") for layer in "0124"),
                sum(held(workload, layer, "optimizer") for layer in "0124"),
                sum(work.operations for work in workload.vector),
            )
        )
    for values in zip(*found, strict=True):
        assert list(values) == sorted(values)
        assert len(set(values)) > 5
    full = traced(net(), (3, 6, 6), optimizer=MOMENTUM)
    assert found[-1][0] == full.macs


@pytest.mark.parametrize(("share", "channels"), [(0.29, 29), (0.57, 57), (0.58, 58), (0.999, 99)])
def test_a_share_that_no_float_holds_is_not_rounded_below_itself(share, channels):
    # 0.29 * 100 is 28.999... in floating point.
    workload = traced(nn.Sequential(nn.Linear(100, 2)), (100,), sparse={"0": share})
    assert shapes(workload, "0")["grad_weight"] == (channels, 2, 2, 1)


def test_every_call_of_a_layer_has_its_share():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    workload = traced(Twice(), (4,), sparse={"layer": 0.5})
    assert shapes(workload, "layer")["grad_weight"] == shapes(workload, "layer#2")["grad_weight"] == (2, 4, 2, 1)
    assert updated(workload, "layer") == [2 * 4 + 4]


def test_a_frozen_layer_stays_frozen():
    workload = traced(net(), (3, 6, 6), sparse={"1": 0.5}, frozen=frozenset({"1"}))
    assert "grad_weight" not in roles(workload)["1"]
    assert held(workload, "1", "gradient") == 0


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"5": 0.5}, "cannot update sparsely '5': "),
        ({"3": 0.5}, r"cannot update sparsely '3' \(Flatten\): only nn.Conv2d and nn.Linear have shares"),
        ({"1": 1.5}, r"layer '1': the share of its channels to update must lie in 0\.\.1, got 1.5"),
        ({"1": -0.1}, r"layer '1': the share of its channels to update must lie in 0\.\.1, got -0.1"),
        ({"1": float("nan")}, r"must lie in 0\.\.1, got nan"),
    ],
)
def test_wrong_names_and_shares_are_refused(shares, message):
    with pytest.raises(UserError, match=message):
        traced(net(), (3, 6, 6), sparse=shares)
