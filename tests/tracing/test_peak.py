"""Liveness of a step: event by event by hand, and what holds for every net."""

import pytest
import torch
from torch import nn

from octo_exp.hw.liveness import step_memory
from octo_exp.nn.convert import convert
from octo_exp.quant.rounding import Clock
from octo_exp.tracing import SGD, optimizer_cost
from tests.nn.helpers import scheme
from tests.tracing.helpers import lenet5, traced

# Bytes of the two layers' parameters.
FIRST, SECOND = 4 * (4 * 3 + 3), 4 * (3 * 2 + 2)
# Five inputs of 4; what the first layer and ReLU make, 3 each; the output, 2 each.
X, HIDDEN, OUT = 4 * 5 * 4, 4 * 5 * 3, 4 * 5 * 2


def two_layers():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def memory(net, shape, **options):
    return step_memory(traced(net, shape, **options).buffers)


def cost_of(kind, **options):
    return optimizer_cost(kind(nn.Linear(2, 2).parameters(), **options))


def test_two_layers_event_by_event():
    report = memory(two_layers(), (4,), batch_size=5)
    weights = FIRST + SECOND
    assert report.live_bytes == (
        # Forward: y0 = linear(x); y1 = relu(y0), which reads y0 and is kept; y2 = linear(y1).
        weights + X + HIDDEN,
        weights + X + 2 * HIDDEN,
        weights + X + HIDDEN + OUT,
        # Backward: dy2 gives dy1 and the second layer's gradients; dy1 and y1 give dy0; dy0 and x the first layer's.
        weights + X + HIDDEN + OUT + HIDDEN + SECOND,
        weights + X + HIDDEN + HIDDEN + HIDDEN + SECOND,
        weights + X + HIDDEN + SECOND + FIRST,
        # The update.
        weights + SECOND + FIRST,
    )
    assert (report.peak_bytes, report.event) == (weights + X + 3 * HIDDEN + SECOND, 4)
    assert report.peak_by_kind == {
        "weight": weights,
        "activation": X + HIDDEN,
        "mask": 0,
        "gradient": 2 * HIDDEN + SECOND,
        "optimizer": 0,
        "workspace": 0,
    }
    assert report.kept_by_layer == {"0": X, "1": HIDDEN}
    assert report.kept_bytes == X + HIDDEN


@pytest.mark.parametrize(
    ("cost", "copies"),
    [
        (SGD, 0),
        (cost_of(torch.optim.SGD, lr=0.1, momentum=0.9), 1),
        (cost_of(torch.optim.Adam), 2),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_the_optimizers_state_is_there_all_the_time(cost, copies):
    plain = memory(two_layers(), (4,), batch_size=5)
    report = memory(two_layers(), (4,), batch_size=5, optimizer=cost)
    state = copies * (FIRST + SECOND)
    assert report.live_bytes == tuple(live + state for live in plain.live_bytes)
    assert report.peak_by_kind["optimizer"] == state


def test_all_frozen_but_the_head_event_by_event():
    adam = cost_of(torch.optim.Adam)
    report = memory(two_layers(), (4,), batch_size=5, optimizer=adam, frozen=frozenset({"0"}))
    owned = FIRST + SECOND + 2 * SECOND
    assert report.live_bytes == (
        owned + X + HIDDEN,
        owned + X + 2 * HIDDEN,
        owned + X + HIDDEN + OUT,
        # Nothing goes back further; the batch stays until the step is over.
        owned + X + HIDDEN + OUT + SECOND,
        owned + X + SECOND,
        owned + X + SECOND,
        owned + SECOND,
    )
    assert report.kept_by_layer == {"2": HIDDEN}


def test_an_int8_layer_event_by_event():
    net = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 5, 3, bias=False))
    convert(net, scheme("int8"), impl="torch", clock=Clock())
    report = memory(net, (2, 4, 4), batch_size=2)
    tables = sum(4 * buffer.numel() for buffer in net.buffers())
    w0, w2, x, y0, y2 = 2 * 3, 3 * 5 * 9, 2 * 2 * 16, 2 * 3 * 16, 2 * 5 * 4
    owned = 4 * (w0 + w2) + tables
    # Codes of the input for grad_weight, a byte of bits for each of 32 positions.
    codes, bits = x, 32
    assert report.live_bytes == (
        # Codes of the weight and one image's sums on the way.
        owned + 4 * x + codes + bits + 4 * y0 + w0 + 4 * y0 // 2,
        owned + 4 * x + codes + bits + 4 * y0 + y0 + 4 * y2 + w2 + 4 * y2 // 2,
        # Codes of the gradient and of the weight, one image's dcol.
        owned + 4 * x + codes + bits + y0 + 4 * y2 + 4 * y0 + 4 * w2 + y2 + w2 + 4 * 4 * 27,
        owned + 4 * x + codes + bits + 4 * y0 + 4 * w2 + 4 * w0 + y0,
        owned + 4 * (w0 + w2),
    )
    assert report.kept_by_layer == {"0": codes + bits, "2": y0}


def nets():
    normed = nn.Sequential(
        nn.Conv2d(1, 9, 3, stride=2), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 4, 3), nn.Flatten(), nn.Linear(676, 3)
    )
    yield "lenet5", lenet5(), {}
    yield "normed", normed, {}
    yield "autocast", lenet5(), {"autocast": True}
    yield "im2col", normed, {"form": "im2col"}
    for name in ("int8", "octo", "fake_qat"):
        net = nn.Sequential(lenet5())
        convert(net, scheme(name, x__range="hindsight"), impl="torch", clock=Clock())
        yield name, net, {}


@pytest.mark.parametrize(("net", "options"), [pytest.param(net, options, id=name) for name, net, options in nets()])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_holds_for_every_net(net, options, frozen):
    adam = cost_of(torch.optim.Adam)
    owned = [*net.parameters(), *net.buffers()]
    weights = sum(t.numel() * t.element_size() for t in owned)
    first = next(module for module in net.modules() if any(True for _ in module.parameters(recurse=False)))
    names = frozenset(name for name, module in net.named_modules() if frozen and module is first)
    still = {id(p) for p in first.parameters()} if frozen else set()
    trained = sum(4 * p.numel() for p in net.parameters() if id(p) not in still)
    before = None
    for batch_size in (1, 2, 7, 16, 63):
        report = memory(net, (1, 32, 32), batch_size=batch_size, optimizer=adam, frozen=names, **options)
        # Weights, their gradients, and Adam's two numbers a weight are what the update needs, and all that it needs.
        assert report.live_bytes[-1] == weights + trained + 2 * trained
        assert report.peak_bytes == max(report.live_bytes) >= report.live_bytes[-1]
        assert sum(report.peak_by_kind.values()) == report.peak_bytes
        assert report.kept_bytes == sum(report.kept_by_layer.values())
        if before is not None:
            assert all(a <= b for a, b in zip(before.live_bytes, report.live_bytes, strict=True))
            assert before.peak_bytes < report.peak_bytes
            assert before.kept_bytes < report.kept_bytes
        before = report


def test_an_input_is_kept_until_the_backward_pass_of_its_reader():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    y0 = [b for b in traced(net, (4,), batch_size=5).buffers if (b.layer, b.kind) == ("1", "activation")]
    # Made by event 0, read by event 1, whose backward pass is the first of two.
    assert [(b.bytes, b.first, b.last) for b in y0] == [(HIDDEN, 0, 2)]
