"""A traced network's plan: the same function in float, whatever it is written with; refusals name the place."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate.plan import Block, Conv
from octo_exp.graph.calibrate.traced import plan_of, trace
from octo_exp.graph.parts import PoolSpec
from tests.graph.calibrate.helpers import MODELS, run_plan, settled, shipped


def same_function(net: nn.Module, images: torch.Tensor) -> None:
    """Folded in float64 and run in float64 against the net in float64: rounding of 1e-15 per operation remains."""
    plan = plan_of(trace(net, images))
    with torch.no_grad():
        wanted = copy.deepcopy(net).eval().double()(images.double())
    torch.testing.assert_close(run_plan(plan, images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", MODELS)
def test_the_plan_of_every_model_is_the_same_function(name, norm):
    net, images = shipped(name, norm, batch=3)
    same_function(net, images)


def test_layers_of_a_plan():
    net, images = shipped("resnet18", "batch", batch=2)
    layers = plan_of(trace(net, images)).layers
    assert [type(layer) for layer in layers] == [Conv, *[Block] * 8, PoolSpec]
    assert [(len(b.body), len(b.shortcut)) for b in layers[1:-1]] == [(2, 0), (2, 0), *[(2, 1), (2, 0)] * 3]
    net, images = shipped("mobilenet_v2", "batch", batch=2)
    layers = plan_of(trace(net, images)).layers
    blocks = [layer for layer in layers if isinstance(layer, Block)]
    # At this width the second stage's first block adds too: it has 8 channels in and out, and stride 1.
    assert [len(block.body) for block in blocks] == [3] * 11
    assert all(block.body[-1].bounds[1] == block.bounds[1] == float("inf") for block in blocks)
    assert all(block.body[0].bounds == (0.0, 6.0) for block in blocks)
    assert sum(isinstance(layer, Conv) for layer in layers) + 33 == 52


@pytest.mark.parametrize("activations", [(nn.ReLU(), nn.ReLU6()), (nn.ReLU6(), nn.MaxPool2d(2), nn.ReLU())])
def test_two_activations_are_as_tight_as_the_tighter(activations):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *activations, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    conv = plan_of(trace(net, torch.randn(2, 3, 8, 8))).layers[0]
    assert conv.bounds == (0.0, 6.0)


class Functional(nn.Module):
    """As tutorials write it: functions, views with sizes, activation after the pool, dropout by function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding="same"), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, groups=2)
        self.conv3 = nn.Conv2d(6, 8, (3, 3), bias=False)
        self.fc1, self.norm2, self.fc2 = nn.Linear(8 * 2 * 2, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.norm1(self.conv1(x)), 3, stride=2, padding=1))
        x = torch.add(self.conv2(x), self.conv3(x))
        x = F.avg_pool2d(F.relu6(x), 2)
        x = x.view(x.size(0), -1)
        x = F.dropout(torch.relu(self.norm2(self.fc1(x))), 0.5, self.training)
        return self.fc2(x)


class Everything(nn.Module):
    """Each spelling once: reshape, mean, adaptive pools, in-place addition, inert modules, a global pool of max."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Identity(), nn.Conv2d(3, 8, 1), nn.Dropout2d(0.2), nn.BatchNorm2d(8, affine=False))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(True), nn.ReLU6(), nn.Conv2d(8, 8, 1))
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(4), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        x += self.body(x)
        x = F.adaptive_avg_pool2d(x, 8)
        return self.last(self.head(x).mean((2, 3)).reshape(x.shape[0], -1))


LINEAR = nn.Linear(16, 3)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (Functional(), (2, 11, 11)),
        (Everything(), (3, 16, 16)),
        (nn.Sequential(nn.Flatten(), nn.Linear(49, 5)), (1, 7, 7)),
        (nn.Sequential(nn.Conv2d(3, 4, 7), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten()), (3, 7, 7)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 16), LINEAR), (3, 8, 8)),
    ],
    ids=["functional", "everything", "one_linear", "convolutions", "sequential"],
)
def test_a_users_own_network_is_the_same_function(net, shape):
    images = torch.randn(16, *shape)
    same_function(settled(net, images), images[:3])


def test_the_net_stays_as_it_was():
    net, images = shipped("lenet5", "batch", batch=2)
    net.train()
    before = copy.deepcopy(net.state_dict())
    plan_of(trace(net, images))
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def wrapped(function) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.half, self.p = nn.Conv2d(3, 3, 1, 2), nn.Parameter(torch.ones(1))
            self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(3 * 64, 4)

        def forward(self, x):
            return self.fc(function(self, x).flatten(1))

    return Net()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2)), "^1: Sigmoid"),
        (nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2)), nn.Flatten()), r"^0\.0: Conv2d"),
        (nn.Sequential(nn.Conv2d(3, 4, (1, 3))), "not square"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "linear layer"),
        (nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 2), nn.LogSoftmax(1)), "^3: LogSoftmax"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect")), "zero padding"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), "^1: BatchNorm2d"),
        (nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(3, 4, 4), nn.Flatten()), "ceil_mode"),
        (nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Flatten(), nn.Linear(192, 2)), "^0: AvgPool2d"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(27, 2)), "equal windows"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.ReLU()), "^1: Flatten"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(6, 2)), "flatten it first"),
        (nn.Sequential(nn.Conv2d(4, 4, 3)), "do not fit"),
        (wrapped(lambda n, x: F.relu(x)), "activation"),
        (wrapped(lambda n, x: n.norm(F.relu(n.a(x)))), "^norm: BatchNorm"),
        (wrapped(lambda n, x: n.norm(x)), "^norm: BatchNorm"),
        (wrapped(lambda n, x: n.a(x) * 2), "mul"),
        (wrapped(lambda n, x: n.a(x) + 1), "add"),
        (wrapped(lambda n, x: n.a(x) + n.p), "add"),
        (wrapped(lambda n, x: x + x), "add"),
        (wrapped(lambda n, x: torch.add(x, n.a(x), alpha=2)), "add"),
        (wrapped(lambda n, x: n.b(F.relu(n.a(x)) + n.a(x)) + x), "within a branch"),
        (wrapped(lambda n, x: (n.a(x) + n.b(x)) + x), "within a branch"),
        (wrapped(lambda n, x: n.a(x) + F.max_pool2d(n.b(x), 3, 1, 1)), "branch with a pool"),
        (wrapped(lambda n, x: F.max_pool2d(x, 3, 1, 1) + n.b(x)), "branch with a pool"),
        (wrapped(lambda n, x: n.a(x) + F.relu(x)), "activation"),
        (wrapped(lambda n, x: F.dropout(n.a(x))), "training"),
        (wrapped(lambda n, x: n.a(x).transpose(2, 3)), "transpose"),
        (wrapped(lambda n, x: n.a(x) if x.sum() > 0 else x), "cannot be recorded"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten()), "^2: an activation"),
        (nn.Module(), "cannot be recorded"),
        (wrapped(lambda n, x: (h := n.a(x), F.relu(h), n.b(h))[2]), "2 readers"),
        (wrapped(lambda n, x: (h := n.a(x), F.relu(h), x + n.b(h))[2]), "from one tensor"),
        (wrapped(lambda n, x: (F.relu(n.a(x), inplace=True), n.b(x))[1]), "readers"),
        (wrapped(lambda n, x: torch.cat([n.a(x)], 1)), "cat"),
        (wrapped(lambda n, x: n.a(x.mean(0, keepdim=True))), "only the mean"),
        (wrapped(lambda n, x: F.conv2d(x, n.a.weight, padding=1)), "conv2d"),
        (wrapped(lambda n, x: n.a(x).mean(1, keepdim=True).expand(-1, 3, -1, -1)), "expand"),
    ],
)
def test_what_a_graph_does_not_have_is_refused_in_one_line(net, message):
    with pytest.raises(UserError, match=message) as caught:
        plan_of(trace(net, torch.randn(2, 3, 8, 8)))
    assert "\n" not in str(caught.value)
