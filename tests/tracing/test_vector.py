"""Work of the vector unit, by hand."""

import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from octo_exp.tracing import SGD, OptimizerCost, optimizer_cost
from tests.nn.helpers import scheme
from tests.tracing.helpers import traced

# Two images of 3 x 7 x 7; elements of the layers' inputs, outputs and weights.
X0, Y0, W0 = 2 * 3 * 49, 2 * 8 * 49, 8 * 27
POOLED = 2 * 8 * 9
Y3, W3 = 2 * 8, 8 * 72
Y6, W6 = 2 * 5, 5 * 8


def blocks():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def int8_blocks(**changes):
    net = blocks()
    convert(net, scheme("int8", **changes), impl="torch", clock=Clock())
    return net


def work(workload):
    """(layer, role, kind) -> (operations, bytes read, bytes written)."""
    found = {}
    for item in workload.vector:
        key = (item.layer, item.role, item.kind)
        assert key not in found
        found[key] = (item.operations, item.bytes_read, item.bytes_written)
    return found


def of_kind(workload, kind):
    return {key[:2]: value for key, value in work(workload).items() if key[2] == kind}


def quantized(elements):
    return 4 * elements, 4 * elements, elements


def updated(parameters):
    return parameters, 8 * parameters, 4 * parameters


def test_an_int8_net_of_every_kind_of_layer():
    assert work(traced(int8_blocks(), (3, 7, 7))) == {
        ("0", "output", "quantize"): quantized(X0 + W0),
        ("0", "output", "rescale"): (2 * Y0, 0, 0),
        # Fused: of ReLU and pooling only the places of the maxima are written, and read again with their gradients.
        ("0", "output", "elementwise"): (Y0, 0, 0),
        ("0", "output", "pool"): (Y0, 0, POOLED),
        # Codes of the maxima are spread over their windows.
        ("0", "grad_input", "pool"): (Y0, POOLED + POOLED, Y0),
        # Of the first layer's gradient only the maxima are quantised; no grad_input, so no second quantised weight.
        ("0", "grad_weight", "quantize"): quantized(POOLED),
        ("0", "grad_weight", "rescale"): (W0, 0, 0),
        ("0", "grad_weight", "elementwise"): (POOLED, 4 * POOLED, 0),
        ("3", "output", "quantize"): quantized(POOLED + W3),
        ("3", "output", "rescale"): (2 * Y3, 0, 0),
        # Bits of eight channels, a byte a position.
        ("3", "output", "elementwise"): (Y3, 0, 2),
        # The gradient itself is read as it is quantised.
        ("3", "grad_input", "elementwise"): (Y3, 2, 0),
        ("3", "grad_input", "quantize"): quantized(Y3 + W3),
        ("3", "grad_input", "rescale"): (POOLED, 0, 0),
        ("3", "grad_input", "col2im"): (2 * 72, 4 * 2 * 72, 4 * POOLED),
        ("3", "grad_weight", "rescale"): (W3, 0, 0),
        ("3", "grad_weight", "elementwise"): (Y3, 4 * Y3, 0),
        ("6", "output", "quantize"): quantized(2 * 8 + W6),
        ("6", "output", "rescale"): (2 * Y6, 0, 0),
        ("6", "grad_input", "quantize"): quantized(Y6 + W6),
        ("6", "grad_input", "rescale"): (2 * 8, 0, 0),
        ("6", "grad_weight", "rescale"): (W6, 0, 0),
        ("6", "grad_weight", "elementwise"): (Y6, 4 * Y6, 0),
        ("0", "grad_weight", "optimizer"): updated(W0 + 8),
        ("3", "grad_weight", "optimizer"): updated(W3 + 8),
        ("6", "grad_weight", "optimizer"): updated(W6 + 5),
    }


def test_a_float_net_with_a_norm():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Tanh(), nn.AvgPool2d(7), nn.Flatten()
    )
    found = work(traced(net, (3, 7, 7)))
    assert {key: value[0] for key, value in found.items()} == {
        # The count of batches.
        ("1", "output", "elementwise"): 1,
        ("1", "output", "norm"): 4 * Y0,
        ("1", "grad_input", "norm"): 8 * Y0,
        ("2", "output", "elementwise"): Y0,
        ("2", "grad_input", "elementwise"): Y0,
        ("3", "output", "pool"): Y0,
        ("3", "grad_input", "pool"): Y0,
        ("0", "grad_weight", "optimizer"): W0,
        ("1", "grad_weight", "optimizer"): 16,
    }
    assert found["2", "output", "elementwise"] == found["2", "grad_input", "elementwise"] == (Y0, 4 * Y0, 4 * Y0)
    assert found["3", "output", "pool"] == (Y0, 4 * Y0, 4 * 16)


def test_a_scale_a_channel_quantises_the_gradient_once_for_each_role():
    found = work(traced(int8_blocks(w__granularity="channel"), (3, 7, 7)))
    assert found["3", "grad_input", "quantize"] == quantized(Y3 + W3)
    assert found["3", "grad_weight", "quantize"] == quantized(Y3)
    assert found["0", "grad_weight", "quantize"] == quantized(POOLED)
    # The scales go into the gradient first.
    assert found["6", "grad_input", "elementwise"] == (Y6, 4 * Y6, 4 * Y6)


def test_codes_that_were_kept_are_not_made_again():
    found = work(traced(int8_blocks(w__rounding="stochastic"), (3, 7, 7)))
    assert found["3", "grad_input", "quantize"] == quantized(Y3)


def test_float_roles_quantise_and_rescale_nothing():
    found = work(traced(int8_blocks(grad_input="fp32", grad_weight="bf16"), (3, 7, 7)))
    for kind in ("quantize", "rescale"):
        assert {key[1] for key in found if key[2] == kind} == {"output"}


def test_fake_roles_quantise_and_rescale_nothing():
    found = work(traced(int8_blocks(output="fake", grad_input="fake", grad_weight="fake"), (3, 7, 7)))
    assert not [key for key in found if key[2] == "rescale"]
    assert found["3", "grad_input", "quantize"] == quantized(Y3 + W3)


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"kernel_size": 1}, 0),
        ({"kernel_size": 1, "stride": 2}, 2 * 4 * 4 * 6),
        ({"kernel_size": (1, 3)}, 2 * 7 * 5 * 6 * 3),
        ({"kernel_size": 3, "groups": 2, "dilation": 2}, 2 * 3 * 3 * 6 * 9),
    ],
    ids=["pointwise", "strided", "row", "grouped"],
)
def test_columns_are_added_up_where_windows_have_them(options, columns):
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, **options))
    found = of_kind(traced(net, (3, 7, 7)), "col2im")
    assert found == ({("1", "grad_input"): (columns, 4 * columns, 4 * 2 * 6 * 49)} if columns else {})
    assert not of_kind(traced(net, (3, 7, 7), form="im2col"), "col2im")


@pytest.mark.parametrize("make", [blocks, int8_blocks])
def test_nothing_is_done_for_what_is_not_trained(make):
    trained = work(traced(make(), (3, 7, 7)))
    head = work(traced(make(), (3, 7, 7), frozen=frozenset({"0", "3"})))
    assert {key for key in head if key[1] != "output"} == {
        key for key in trained if key[0] == "6" and key[1] == "grad_weight"
    } | ({("6", "grad_weight", "quantize")} if make is int8_blocks else set())
    nothing = work(traced(make(), (3, 7, 7), frozen=frozenset({"0", "3", "6"})))
    assert {key[1] for key in nothing} == {"output"}
    # The forward pass is the same, but for the masks that are not written.
    for found in (head, nothing):
        assert {k: v[0] for k, v in found.items() if k[1] == "output"} == {
            k: v[0] for k, v in trained.items() if k[1] == "output"
        }


@pytest.mark.parametrize(
    ("make", "operations", "state_bytes"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 1, 0),
        # buf = m * buf + g, then the update.
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 3, 4),
        # g + m * buf besides.
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 4, 4),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1), 2, 0),
        (lambda p: torch.optim.Adam(p), None, 8),
        (lambda p: torch.optim.AdamW(p), None, 8),
        (lambda p: torch.optim.RMSprop(p), None, 4),
    ],
    ids=["sgd", "momentum", "nesterov", "decay", "adam", "adamw", "rmsprop"],
)
def test_cost_of_an_optimizer(make, operations, state_bytes):
    net = nn.Linear(5, 3)
    before = [parameter.clone() for parameter in net.parameters()]
    optimizer = make(net.parameters())
    cost = optimizer_cost(optimizer)
    assert cost.state_bytes == state_bytes
    assert cost.operations > 4 if operations is None else cost.operations == operations
    assert not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert optimizer_cost(torch.optim.SGD(net.parameters(), lr=1.0)) == SGD


def test_the_most_expensive_group_counts():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "momentum": 0.9}]
    assert optimizer_cost(torch.optim.SGD(groups, lr=0.1)) == OptimizerCost(operations=3, state_bytes=4)


def test_an_optimizer_that_needs_a_closure_is_refused():
    optimizer = torch.optim.LBFGS(nn.Linear(2, 2).parameters())
    with pytest.raises(UserError, match=r"cost: LBFGS cannot be priced .*choose another optimizer") as caught:
        optimizer_cost(optimizer)
    assert "\n" not in str(caught.value)


def test_the_update_reads_and_writes_parameters_gradients_and_state():
    cost = OptimizerCost(operations=11.5, state_bytes=8)
    assert of_kind(traced(nn.Sequential(nn.Linear(4, 3)), (4,), optimizer=cost), "optimizer") == {
        ("0", "grad_weight"): (173, 15 * (8 + 8), 15 * (4 + 8))
    }
