"""A trained net as a file: integers in their ranges, unchanged scales, and the same logits when it is read again."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.files.writer import write_model
from octo_exp.graph.parts import DEAD_SCALE
from octo_exp.graph.spec import ModelSpec
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.to_spec import spec_of
from octo_exp.graph.train.update.optimizers import UpdateSGD
from tests.graph.helpers import MODES, model_file, same, tiny_model, tiny_resnet

SPECS = {"published": tiny_model, "own": tiny_resnet}


def images_for(spec: ModelSpec, n: int) -> Tensor:
    channels, size = spec.image[:2]
    codes = torch.randint(-128, 128, (n, channels, size, size))
    return ((codes - spec.input.zero) * spec.input.scale).float()


def net_of(spec: ModelSpec, head: str, mode: str = "integer", classes: int | None = None) -> McuNet:
    torch.manual_seed(0)
    return McuNet(spec, num_classes=classes or spec.classifier.out_channels, head=head, mode=mode)


def trained(net: McuNet, x: Tensor, *, steps: int = 3, lr: float = 1e-2, strict: bool = True) -> McuNet:
    """Steps of QAS on one batch; strict: masters are integers after each."""
    options = {"lr": lr, "momentum": 0.9, "weight_decay": 0.0, "qas": True, "strict_int8": strict}
    optimizer = UpdateSGD(net.parameters(), convs=net.convs, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), torch.arange(len(x)) % 4).backward()
        optimizer.step()
    return net


@torch.no_grad()
def same_logits(net: McuNet, again: ModelSpec, x: Tensor) -> bool:
    return all(torch.equal(McuNet.with_classifier(again, mode=mode)(x), net(x)) for mode in MODES)


@pytest.mark.parametrize("name", SPECS)
def test_what_was_read_is_what_is_exported(name):
    spec = SPECS[name]()
    assert same(spec_of(net_of(spec, "original"), logits_absmax=None), spec)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["quantized", "original"])
def test_strict_training_survives_a_file(name, mode, head, tmp_path):
    spec = SPECS[name]()
    x = images_for(spec, 8)
    start = net_of(spec, head, mode)
    net = trained(copy.deepcopy(start), x)
    exported = spec_of(net, logits_absmax=None)
    write_model(exported, tmp_path / "x.pkl")
    again = read_model(tmp_path / "x.pkl")
    assert same(again, exported)
    assert same_logits(net, again, x)
    assert not torch.equal(start(x), net(x))
    moved = [not np.array_equal(a.weight, b.weight) for a, b in zip(spec.convs, again.convs, strict=True)]
    assert sum(moved) > 1
    for a, b in zip(spec.convs, again.convs, strict=True):
        assert a.takes == b.takes
        assert a.gives == b.gives
        assert np.array_equal(a.w_scales, b.w_scales)


@pytest.mark.data
@pytest.mark.parametrize("head", ["quantized", "original"])
def test_strict_training_of_a_released_model_survives_a_file(head, tmp_path):
    spec = read_model(model_file("mcunet-5fps"))
    x = images_for(spec, 2)
    net = trained(net_of(spec, head), x, steps=2, lr=1e-3)
    write_model(spec_of(net, logits_absmax=None), tmp_path / "x.pkl")
    assert same_logits(net, read_model(tmp_path / "x.pkl"), x)
    assert not torch.equal(net_of(spec, head)(x), net(x))


def test_masters_are_rounded_half_to_even_and_clamped():
    net = net_of(tiny_resnet(), "original")
    conv = net.convs[4]
    with torch.no_grad():
        conv.weight.view(-1)[:7] = torch.tensor([0.5, 1.5, -0.5, 300.0, -300.0, -128.0, 2.6])
        conv.bias[:6] = torch.tensor([2.5, 3.5, 2.0**31, 2.0**31 - 128, -(2.0**31), -1e12])
    spec = spec_of(net, logits_absmax=None).convs[4]
    assert spec.weight.flatten()[:7].tolist() == [0, 2, 0, 127, -127, -127, 3]
    assert spec.bias[:6].tolist() == [2, 4, 2**31 - 1, 2**31 - 128, -(2**31), -(2**31)]
    assert net.spec.convs[4].bias[0] != 2


def test_scales_are_those_of_the_state():
    """A net whose state is another file's exports that file."""
    file = tiny_resnet(3, scale=0.07)
    net, other = net_of(tiny_resnet(), "original"), net_of(file, "original")
    net.load_state_dict(other.state_dict())
    assert same(spec_of(net, logits_absmax=None), file)
    net, other = net_of(tiny_resnet(), "fp"), net_of(file, "fp")
    net.load_state_dict(other.state_dict())
    assert same(spec_of(net, logits_absmax=3.0), spec_of(other, logits_absmax=3.0))


def test_a_quantised_head_of_other_classes_is_exported():
    net, x = net_of(tiny_resnet(), "quantized", classes=7), images_for(tiny_resnet(), 5)
    exported = spec_of(net, logits_absmax=None)
    assert exported.classifier.out_channels == 7
    assert same_logits(net, exported, x)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("classes", [1, 7, 63])
def test_a_float_head_becomes_int8(name, classes, tmp_path):
    spec = SPECS[name]()
    net, x = net_of(spec, "fp", classes=classes), images_for(spec, 16)
    with torch.no_grad():
        net.head.linear.weight[0] = 0
        logits = net(x)
    exported = spec_of(net, logits_absmax=float(logits.abs().max()))
    head = exported.classifier
    assert (head.y_zero, head.y_scale) == (0, float(logits.abs().max()) / 127)
    write_model(exported, tmp_path / "x.pkl")
    got = McuNet.with_classifier(read_model(tmp_path / "x.pkl"), mode="float_order")(x).detach().double()
    features = net.features(net.input(x)).detach().flatten(1)
    # Half a code of the logit and of every weight and bias; the rest is float32's.
    reals = ((features - net.head.x_zero) * net.head.x_scale).abs().double().sum(1, keepdim=True)
    budget = 0.51 * (head.y_scale + torch.from_numpy(head.w_scales) * (reals + spec.classifier.x_scale))
    assert ((got - logits).abs() <= budget).all()
    assert head.w_scales.min() >= np.float32(DEAD_SCALE)
    assert np.abs(head.weight).max(axis=(1, 2, 3)).tolist() == [0, *[127] * (classes - 1)]


def test_a_large_bias_of_a_float_head_fits():
    net = net_of(tiny_resnet(), "fp")
    with torch.no_grad():
        net.head.linear.bias.copy_(torch.tensor([1e8, -3e7, 0.0, 1.0]))
    head = spec_of(net, logits_absmax=1e8).classifier
    want = net.head.linear.bias.detach().numpy()
    assert np.abs(head.bias * (head.w_scales * head.x_scale) - want).max() <= 1e8 * 2.0**-23
    assert np.abs(head.bias).max() <= 2**30 + 64


@pytest.mark.parametrize("value", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_a_float_head_needs_the_range_of_its_logits(value):
    with pytest.raises(UserError, match="give the largest"):
        spec_of(net_of(tiny_resnet(), "fp"), logits_absmax=value)


def test_a_live_pixel_does_not_wake_a_dead_channel():
    """Its gradient is not 0, and QAS would divide it by 1e-17."""
    spec = tiny_resnet()
    for conv in (spec.convs[0], spec.convs[-1]):
        conv.w_scales[[0, 3]] = (3.94e-9, 9e-6)
    net, x = net_of(spec, "fp"), images_for(spec, 8)
    before = copy.deepcopy(net.state_dict())
    F.cross_entropy(net(x), torch.arange(8) % 4).backward()
    for conv in (net.convs[0], net.convs[-1]):
        assert (conv.weight.grad[[0, 3]].flatten(1).abs().amax(1) > 0).all()
        assert (conv.bias.grad[[0, 3]] != 0).all()
    for index in (0, len(net.convs) - 1):
        name = {0: "layers.0"}.get(index, "layers.3.shortcut.0")
        conv = trained(copy.deepcopy(net), x, steps=1, lr=1e-3, strict=False).get_submodule(name)
        for kind in ("weight", "bias"):
            got, want = getattr(conv, kind), before[f"{name}.{kind}"]
            assert torch.equal(got[[0, 3]], want[[0, 3]])
            assert not torch.equal(got[[1, 2]], want[[1, 2]])
