"""A float network becomes an int8 graph that answers as it does: every model, and a trained one on digits."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.graph.calibrate import quantize_network
from octo_exp.graph.train.graph_net import McuNet
from tests.graph.calibrate.helpers import MODELS, model, settled, shipped

SETTINGS: dict[str, Any] = {
    "activations": "absmax",
    "percentile": 99.99,
    "symmetric": False,
    "weights_per_channel": True,
}


def logits(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net(images)


def graph_of(net: nn.Module, images: Any, **settings: Any) -> McuNet:
    return McuNet.with_classifier(quantize_network(net, images, **{**SETTINGS, **settings}), mode="integer")


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_model_follow_the_float_ones(name, norm):
    net, images = shipped(name, norm, batch=16)
    ours, theirs = logits(graph_of(net, [images]), images), logits(net, images)
    correlation = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
    # Random weights tell images apart badly, and 35 norms of 16 images each spread what is left of a difference.
    assert correlation > (0.9 if (name, norm) == ("mobilenet_v2", "batch") else 0.97)
    # The argmax is the same where the float one leads by twice the typical error.
    lead = theirs.topk(2).values
    clear = lead[:, 0] - lead[:, 1] > 4 * (ours - theirs).square().mean().sqrt()
    assert torch.equal(ours.argmax(1)[clear], theirs.argmax(1)[clear])


def test_both_arithmetics_run_the_graph():
    net, images = shipped("resnet20", "batch", batch=4)
    spec = quantize_network(net, [images], **SETTINGS)
    a, b = (logits(McuNet.with_classifier(spec, mode=mode), images) for mode in ("integer", "float_order"))
    assert (a - b).abs().max() <= 8 * spec.classifier.y_scale


def test_the_net_stays_as_it_was_and_images_are_read_once():
    net, images = shipped("lenet5", "batch", batch=6)
    net.train()
    before = copy.deepcopy(net.state_dict())
    read = []

    def batches():
        for batch in images.split(2):
            read.append(len(batch))
            yield batch

    streamed = quantize_network(net, batches(), **SETTINGS)
    assert read == [2, 2, 2]
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    whole = quantize_network(net, [images], **SETTINGS)
    assert [c.y_scale for c in streamed.convs] == pytest.approx([c.y_scale for c in whole.convs], rel=1e-5)


def test_a_users_own_network():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.MaxPool2d(2, 2),
        nn.Dropout(0.5),
        nn.Conv2d(8, 16, 1, groups=2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4, 7),
    )
    images = torch.randn(32, 3, 16, 16)
    settled(net, images)
    ours, theirs = logits(graph_of(net, [images]), images), logits(net, images)
    assert (ours - theirs).abs().max() <= 0.05 * theirs.abs().max()


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """(LeNet-5 with norms after a few seconds of training, training images, test images and labels), [N, 1, 32, 32]."""
    torch.manual_seed(0)
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images).float().unsqueeze(1) / 8 - 1, scale_factor=4)
    labels, order = torch.tensor(data.target), torch.randperm(len(data.target))
    images, labels = images[order], labels[order]
    net = model("lenet5", channels=1, norm="batch")
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(3):
        for x, y in zip(images[:1200].split(50), labels[:1200].split(50), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval(), images[:1200], images[1200:], labels[1200:]


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("activations", ["absmax", "percentile", "mse"])
def test_a_trained_network_keeps_its_accuracy(digits, activations, per_channel):
    net, train, test, labels = digits
    batches = train[:256].split(64)
    graph = graph_of(net, batches, activations=activations, weights_per_channel=per_channel)
    ours, theirs = ((logits(n, test).argmax(1) == labels).float().mean() for n in (graph, net))
    assert theirs > 0.95
    assert abs(ours - theirs) <= 0.01


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one batch"),
        ([torch.zeros(2, 1, 32, 32)], "nothing but zeros"),
        ([torch.zeros(2, 1, 32, 32, dtype=torch.uint8)], "float tensors"),
        ([torch.rand(1, 32, 32)], "float tensors"),
        ([torch.rand(2, 1, 32, 28)], "do not fit|square"),
        ([torch.rand(2, 3, 32, 32)], "do not fit"),
        ([torch.rand(2, 1, 32, 32), torch.rand(2, 1, 30, 30)], "does not fit"),
        ([torch.full((2, 1, 32, 32), float("nan"))], "not finite"),
        (
            [torch.rand(2, 1, 32, 32), torch.full((2, 1, 32, 32), float("inf"))],
            "images hold values .* not finite",
        ),
        (
            [torch.rand(2, 1, 32, 32), torch.full((2, 1, 32, 32), float("nan"))],
            "images hold values .* not finite",
        ),
    ],
)
def test_images_that_cannot_calibrate_are_refused(images, message):
    with pytest.raises(UserError, match=message) as caught:
        quantize_network(model("lenet5", channels=1, norm="none"), images, **SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [-2.0, 2.0])
@pytest.mark.parametrize("activations", ["absmax", "percentile", "mse"])
def test_a_layer_that_overflows_is_named(activations, weight):
    # ReLU6 would make 0 or 6 of an infinity.
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
    nn.init.constant_(net[0].weight, weight)
    batches = [torch.rand(2, 1, 8, 8), torch.full((1, 1, 8, 8), 3e38), torch.rand(2, 1, 8, 8)]
    with pytest.raises(UserError, match="calibration: layer 0 makes values that are not finite"):
        quantize_network(net, batches, **{**SETTINGS, "activations": activations})


def test_settings_are_checked_before_anything_runs():
    for settings in ({"activations": "minmax"}, {"activations": "percentile", "percentile": 10.0}):
        with pytest.raises(UserError, match=r"must be|is unknown"):
            quantize_network(nn.Sigmoid(), [torch.rand(1, 1, 8, 8)], **{**SETTINGS, **settings})
