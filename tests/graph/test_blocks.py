"""Our own graphs, with a max pool, both blocks of a ResNet and a linear head: outputs, gradients, what they keep."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.base.errors import UserError
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.trained import NOTHING, Update
from tests.graph.helpers import MODES, tiny_resnet
from tests.graph.random_models import random_model
from tests.graph.test_graph import gradients, plain, saved_by, through


def net_of(mode: str = "integer", head: str = "fp", **options: bool) -> McuNet:
    torch.manual_seed(0)
    return McuNet(tiny_resnet(), num_classes=4, head=head, mode=mode, **options)


def images(n: int = 3) -> Tensor:
    """Floats whose codes go beyond the ends."""
    return torch.randn(n, 3, 14, 14) * 2


@pytest.mark.parametrize("head", ["fp", "fp_original", "quantized", "original"])
def test_both_arithmetics_give_the_same_logits(head):
    x = images(7)
    a, b = (net_of(mode, head)(x) for mode in MODES)
    assert torch.equal(a, b)
    assert a.shape == (7, 4)
    assert len(a.unique()) > 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer", [2, 3])
def test_a_block_adds_its_shortcut_and_its_body_in_that_order(mode, layer):
    net = net_of(mode)
    block = net.layers[layer]
    x = through(net.layers[:layer], net.input(images()))
    x1, x2 = (t.detach().numpy() for t in (through(block.shortcut, x), through(block.body, x)))
    (s1, s2, s), (z1, z2, z) = (np.float32(v) for v in block.residual.scales), block.residual.zeros.tolist()
    t = np.rint(((x1 - z1) * s1 + (x2 - z2) * s2) / s) + np.float32(z)
    assert torch.equal(block(x), torch.from_numpy(t.clip(-128, 127)))
    assert net.spec.layers[layer].body[-1].gives.scale == float(block.residual.scales[1])
    assert net.spec.layers[layer].residual.x_scale == float(block.residual.scales[0])
    assert s1 != s2
    assert np.abs(t).max() > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_net_is_its_layers(mode):
    net, x = net_of(mode), images()
    codes = net.input(x)
    assert torch.equal(net.features(codes), through(net.layers, codes))
    assert torch.equal(net(x), net.head(through(net.layers, codes)))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_plain_torch(mode):
    net, x = net_of(mode), images(7)
    got = gradients(net, x)
    net.zero_grad()
    F.cross_entropy(plain(net, net.input(x)), torch.arange(7) % 4).backward()
    assert sum("shortcut" in name for name in got) == 2
    for name, p in net.named_parameters():
        assert (got[name].double() - p.grad).abs().max() <= 1e-5 * p.grad.abs().max(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("seed", range(12))
def test_layers_of_any_order_give_the_same_bits_and_the_gradients_of_plain_torch(seed):
    torch.manual_seed(seed)
    spec = random_model(seed)
    nets = [McuNet(spec, num_classes=4, head="fp_original", mode=mode) for mode in MODES]
    codes = torch.randint(-128, 128, (3, *spec.image[:1], *[spec.image.size] * 2))
    x = (codes - spec.input.zero) * spec.input.scale
    assert torch.equal(nets[0](x), nets[1](x))
    for net in nets:
        got = gradients(net, x)
        net.zero_grad()
        F.cross_entropy(plain(net, net.input(x)), torch.arange(3) % 4).backward()
        for name, p in net.named_parameters():
            assert (got[name].double() - p.grad).abs().max() <= 1e-5 * p.grad.abs().max(), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("trained", ["layers.0", "layers.2.body.1", "layers.3.body.0", "layers.3.shortcut.0", "head"])
def test_one_trained_layer_gets_its_full_gradient_and_the_others_none(mode, trained):
    net, x = net_of(mode), images()
    full = gradients(net, x)
    for name, conv in net.named_modules():
        if conv in net.convs and name != trained:
            conv.update = NOTHING
    got = gradients(net, x)
    for name, want in full.items():
        if name.startswith((trained, "head")):
            assert torch.equal(got[name], want), name
        else:
            assert got[name] is None, name


@pytest.mark.parametrize("mode", MODES)
def test_what_is_kept(mode):
    """Bits and codes of the convolutions and additions, positions of the max pool where a gradient passes it."""
    net, x = net_of(mode), images()
    pool = (3, 6, 7, 7)
    assert sum(t.shape == pool and t.dtype == torch.uint8 for t in saved_by(net, x)) == 1
    codes = sum(t.numel() for t in saved_by(net, x) if t.dtype == torch.int8)
    assert codes == 3 * sum(c.in_channels * c.in_size**2 for c in net.spec.convs)
    for conv in net.convs[:1]:
        conv.update = NOTHING
    assert sum(t.shape == pool and t.dtype == torch.uint8 for t in saved_by(net, x)) == 0
    for conv in net.convs:
        conv.update = NOTHING
    net.convs[-1].update = Update(train_weight=False)
    # The shortcut's bits and those of its addition.
    kept = [t.numel() for t in saved_by(net, x) if t.dtype in (torch.int8, torch.uint8)]
    assert kept == [-(-3 * 9 * 4 * 4 // 8)] * 2


def test_convolutions_are_in_the_order_of_the_spec():
    net = net_of(head="original")
    assert [c.weight.shape for c in net.convs] == [c.weight.shape for c in (*net.spec.convs, net.spec.classifier)]
    assert [c.kernel_size for c in net.convs] == [(5, 5), *[(3, 3)] * 4, (1, 1), (2, 2)]
    for conv, spec in zip(net.convs, (*net.spec.convs, net.spec.classifier), strict=True):
        assert np.array_equal(conv.weight.detach().numpy(), spec.weight)
        assert (conv.in_size[0], conv.out_size[0]) == (spec.in_size, spec.out_size)


def test_floats_become_codes():
    net = net_of()
    scale, zero = np.float32(0.02), np.float32(5)
    x = torch.cat([images(5).flatten(), torch.linspace(-3, 3, 4001), torch.tensor([1e30, -1e30])])
    want = (np.rint(x.numpy() / scale) + zero).clip(-128, 127)
    assert np.array_equal(net.input(x).numpy(), want)
    assert {-128.0, 127.0} <= set(want)
    # Halves go to even: code 5 + x / 0.02.
    assert net.input(torch.tensor([0.0])).item() == 5


def test_what_is_no_number_is_refused():
    x = images()
    x[1, 2, 3, 4] = float("nan")
    with pytest.raises(UserError, match="input must be numbers"):
        net_of()(x)
    with pytest.raises(UserError, match=r"must be \[N, 3, 14, 14\], got \[1, 3, 16, 16\]"):
        net_of()(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("mode", MODES)
def test_float_heads_of_the_file_give_its_logits_before_rounding(mode):
    net, file = net_of(mode, "fp_original"), net_of(mode, "original")
    x = images(16)
    real, codes = net(x), file.classify(file.input(x))
    head = net.spec.classifier
    inside = (codes > -128) & (codes < 127)
    assert ((real - (codes - head.y_zero) * head.y_scale).abs() <= 0.501 * head.y_scale)[inside].all()
    assert inside.float().mean() > 0.5
    assert torch.equal(file(x), (codes - head.y_zero) * float(head.y_scale))
    for name, t in (("weight", net.head.linear.weight), ("bias", net.head.linear.bias)):
        assert t.requires_grad, name
    with pytest.raises(UserError, match="has 4 classes, not 7"):
        McuNet(tiny_resnet(), num_classes=7, head="fp_original", mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["quantized", "original"])
def test_an_int8_head_trains_on_real_logits(mode, head):
    net, x = net_of(mode, head), images(7)
    got = gradients(net, x)
    features = net.features(net.input(x)).detach()
    layer = net.head
    weight, bias = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
    acc = F.linear((features - layer.x_zero).flatten(1).double(), weight.flatten(1), bias)
    t = acc * layer.effective_scale.double() + layer.y_zero
    codes = (t + (t.round() - t).detach()).clamp(-128, 127)
    logits = (codes - layer.y_zero) * layer.y_scale
    assert (logits - net(x)).abs().max() <= 1e-6 * float(layer.y_scale) * 128
    F.cross_entropy(logits, torch.arange(7) % 4).backward()
    for name, want in (("head.weight", weight.grad), ("head.bias", bias.grad)):
        assert (got[name] - want).abs().max() <= 1e-5 * want.abs().max() > 0, name
