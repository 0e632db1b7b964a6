"""The whole graph on a small model: its parts, its gradients, what it saves, and what it refuses."""

import io
from collections.abc import Iterable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octo_exp.base.errors import UserError
from octo_exp.graph.train import chains
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.heads import random_classifier
from octo_exp.graph.train.modules import McuBlock, McuConv2d, McuPool
from octo_exp.graph.train.trained import EVERYTHING, NOTHING, Update
from tests.graph.helpers import MODES, tiny_model


def net_of(mode: str = "integer", head: str = "fp", **options: bool) -> McuNet:
    torch.manual_seed(0)
    return McuNet(tiny_model(), num_classes=5, head=head, mode=mode, **options)


def images(n: int = 3) -> Tensor:
    return torch.randint(-128, 128, (n, 3, 16, 16)).float()


def gradients(net: McuNet, x: Tensor) -> dict[str, Tensor | None]:
    net.zero_grad()
    F.cross_entropy(net(x), torch.arange(len(x)) % 4).backward()
    return {name: p.grad for name, p in net.named_parameters()}


def saved_by(net: McuNet, x: Tensor) -> list[Tensor]:
    """What a forward pass keeps, without the parameters themselves."""
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        F.cross_entropy(net(x), torch.arange(len(x)) % 4)
    parameters = {p.data_ptr() for p in net.parameters()}
    return [t for t in kept if t.data_ptr() not in parameters]


@pytest.mark.parametrize("head", ["fp", "quantized", "original"])
def test_both_arithmetics_give_the_same_logits(head):
    x = images()
    a, b = (net_of(mode, head)(x) for mode in MODES)
    assert torch.equal(a, b)
    assert a.shape == (3, 5)
    assert len(a.unique()) > 1


@pytest.mark.parametrize("mode", MODES)
def test_a_block_is_its_parts_one_by_one(mode):
    net, x = net_of(mode), torch.randint(-128, 128, (2, 6, 8, 8)).float()
    block = net.layers[2]
    y = through(block.body, x)
    add = block.residual.step
    a, b = (v.double() - z for v, z in zip((x, y), add.zeros, strict=False))
    total = (a * add.scales[0] + b * add.scales[1]) / add.scales[2]
    assert (block(x) - (total + add.zeros[2]).clamp(-128, 127)).abs().max() <= 0.5001
    assert not torch.equal(block(x), y)
    assert torch.equal(net.layers[3](x), through(net.layers[3].body, x))
    image = images()
    assert torch.equal(net.features(image), through(net.layers, image))


def through(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_plain_torch(mode):
    """The same graph in straight-through torch operations, in float64."""
    net, x = net_of(mode), images()
    got = gradients(net, x)
    net.zero_grad()
    F.cross_entropy(plain(net, x), torch.arange(3) % 4).backward()
    for name, p in net.named_parameters():
        assert (got[name].double() - p.grad).abs().max() <= 1e-5 * p.grad.abs().max(), name
        assert p.grad.abs().max() > 0, name


def _round(t: Tensor, single: Tensor | None = None) -> Tensor:
    """Straight-through; `single` is t by float32's steps, which decide ties."""
    return t + ((t.float() if single is None else single).round() - t).detach()


def plain(net: McuNet, x: Tensor) -> Tensor:
    def conv(layer: torch.nn.Module, x: Tensor) -> Tensor:
        g, e = layer.geometry, layer.effective_scale.double().reshape(-1, 1, 1)
        acc = F.conv2d(x - layer.x_zero, _round(layer.weight.double()), None, g.stride, g.padding, 1, g.groups)
        bias = layer.bias.reshape(-1, 1, 1)
        t = _round((acc + bias.double()) * e, (acc.float() + bias) * e.float())
        return (t + layer.y_zero).clamp(-128, 127)

    def chain(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
        for layer in layers:
            x = conv(layer, x)
        return x

    def block(layer: nn.Module, x: Tensor) -> Tensor:
        body = chain(layer.body, x)
        if layer.residual is None:
            return body
        (s1, s2, s), (z1, z2, z) = layer.residual.scales, layer.residual.zeros
        x1, x2 = chain(layer.shortcut, x) - z1, body - z2
        return (_round((x1 * s1 + x2 * s2) / s, (x1.float() * s1 + x2.float() * s2) / s) + z).clamp(-128, 127)

    def pool(layer: nn.Module, x: Tensor) -> Tensor:
        p = layer.step
        if p.kind == "average":
            return _round(F.avg_pool2d(x, p.kernel, p.stride))
        return F.max_pool2d(x, p.kernel, p.stride, p.padding)

    x, forms = x.double(), {McuConv2d: conv, McuBlock: block, McuPool: pool}
    for layer in net.layers:
        x = forms[type(layer)](layer, x)
    head = net.head
    x = (x.flatten(1) - head.x_zero) * head.x_scale
    return F.linear(x, head.linear.weight.double(), head.linear.bias.double())


def test_the_convolutions_are_in_backbone_order():
    assert [c.out_channels for c in net_of().convs] == [8, 8, 6, 16, 16, 6, 16, 16, 10]
    assert net_of(head="quantized").convs[-1].out_channels == 5
    assert len(net_of(head="quantized").convs) == len(net_of().convs) + 1
    first = net_of().convs[0]
    assert (first.in_channels, first.groups, first.in_size, first.out_size) == (3, 1, (16, 16), (8, 8))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_kept_is_float_and_masks_are_bits(mode):
    net, x = net_of(mode), images()
    head = {(3, 10), (3, 5)}
    kept = [t for t in saved_by(net, x) if tuple(t.shape) not in head and t.dtype != torch.int64 and t.dim() > 0]
    assert {t.dtype for t in kept} == {torch.int8, torch.uint8}
    codes = sum(t.numel() for t in kept if t.dtype == torch.int8)
    bits = sum(t.numel() for t in kept if t.dtype == torch.uint8)
    convs = net.convs
    sizes = [c.in_channels * c.in_size[0] ** 2 for c in convs]
    # Every image of these sizes is whole bytes; the addition has 6 x 8 x 8 bits too.
    outputs = [c.out_channels * c.out_size[0] ** 2 for c in convs] + [6 * 8 * 8]
    assert codes == 3 * sum(sizes)
    assert bits == sum(-(-3 * n // 8) for n in outputs)


@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_prefix_keeps_nothing_and_runs_no_backward(mode):
    net, x = net_of(mode), images()
    full = gradients(net, x)
    for conv in net.convs[:-2]:
        conv.update = NOTHING
    net.convs[-2].update = Update(train_weight=False)
    net.convs[-1].update = EVERYTHING
    kept = [t for t in saved_by(net, x) if t.dtype in (torch.int8, torch.uint8)]
    # Bits of the last two, codes of the last one's input.
    assert sorted(t.numel() for t in kept) == [3 * 10 * 16 // 8, 3 * 16 * 16 // 8, 3 * 16 * 16]
    assert not through(net.layers[:3], x).requires_grad
    got = gradients(net, x)
    trained = {"layers.3.body.1.bias", "layers.3.body.2.weight", "layers.3.body.2.bias"}
    for name, want in full.items():
        if name in trained or name.startswith("head"):
            assert torch.equal(got[name], want), name
        else:
            assert got[name] is None, name


@pytest.mark.parametrize("mode", MODES)
def test_everything_frozen_leaves_the_head(mode):
    net = net_of(mode)
    for conv in net.convs:
        conv.update = NOTHING
    assert not [t for t in saved_by(net, images()) if t.dtype in (torch.int8, torch.uint8)]
    got = gradients(net, images())
    assert [name for name, g in got.items() if g is not None] == ["head.linear.weight", "head.linear.bias"]


@pytest.mark.parametrize("mode", MODES)
def test_kept_channels_are_the_saved_ones_and_get_the_full_gradient(mode):
    net, x = net_of(mode), images()
    full = gradients(net, x)
    pointwise, depthwise = net.convs[6], net.convs[7]
    kept = torch.tensor([5, 2])
    for conv in net.convs:
        conv.update = Update(train_weight=False)
    for conv in (pointwise, depthwise):
        conv.update = Update(kept=kept)
    codes = sorted(t.numel() for t in saved_by(net, x) if t.dtype == torch.int8)
    assert codes == [3 * 2 * 64, 3 * 2 * 64]
    got = gradients(net, x)
    for name, dimension in (("layers.3.body.0.weight", 1), ("layers.3.body.1.weight", 0)):
        share, whole = got[name].index_select(dimension, kept), full[name].index_select(dimension, kept)
        assert (share - whole).abs().max() <= 1e-5 * whole.abs().max()
        assert got[name].count_nonzero() == share.count_nonzero() > 0


@pytest.mark.parametrize("mode", MODES)
def test_without_gradients_nothing_is_made_for_them(mode, monkeypatch):
    net, wanted = net_of(mode), []
    arithmetic = chains.arithmetic_of(mode, "cpu")
    forward = arithmetic.forward

    def watched(*operands: Tensor, want_bits: bool) -> tuple[Tensor, Tensor]:
        wanted.append(want_bits)
        return forward(*operands, want_bits=want_bits)

    monkeypatch.setattr(arithmetic, "forward", watched)
    with torch.no_grad():
        assert not net(images()).requires_grad
    assert wanted == [False] * 9
    net(images())
    assert wanted[9:] == [True] * 9


def test_the_state_is_all_that_a_graph_needs():
    a = net_of()
    b = McuNet(tiny_model(7), num_classes=5, head="fp", mode="integer")
    assert not torch.equal(a(images()), b(images()))
    buffer = io.BytesIO()
    torch.save(a.state_dict(), buffer)
    buffer.seek(0)
    b.load_state_dict(torch.load(buffer, weights_only=True))
    x = images()
    assert torch.equal(a(x), b(x))
    names = set(a.convs[0].state_dict())
    assert {"x_scale", "x_zero", "y_scale", "y_zero", "w_scales", "weight", "bias"} <= names


def test_a_quantised_head_starts_as_an_int8_layer():
    head = net_of(head="quantized").head
    assert torch.equal(head.weight, head.weight.round())
    assert torch.equal(head.weight.abs().amax((1, 2, 3)), torch.full((5,), 127.0))
    assert (float(head.y_scale), int(head.y_zero)) == (1.0, 0)
    scale = (head.x_scale * head.w_scales.double()).float()
    assert torch.equal(head.effective_scale, scale)
    torch.manual_seed(0)
    spec = random_classifier(tiny_model().classifier, 5)
    torch.manual_seed(0)
    layer = torch.nn.Linear(10, 5)
    # Half a code.
    scales = torch.from_numpy(spec.w_scales)
    weight, bias = torch.from_numpy(spec.weight).float(), torch.from_numpy(spec.bias).float()
    assert ((weight.flatten(1) * scales.unsqueeze(1) - layer.weight).abs().amax(1) <= 0.501 * scales).all()
    assert ((bias * scales * spec.x_scale - layer.bias).abs() <= 0.501 * scales * spec.x_scale).all()
    y = net_of(head="quantized")(images())
    assert torch.equal(y, y.round())


def test_dead_channels_compute_as_the_rest():
    spec = tiny_model()
    first = spec.convs[0]
    first.w_scales[:2] = 3.94e-9
    first.bias[0] = 2**31 - 1
    a, b = (McuNet(spec, num_classes=5, head="fp", mode=mode) for mode in MODES)
    y, z = a.convs[0](images()), b.convs[0](images())
    want = np.float32(2.0**31) * np.float32(0.05 * np.float64(np.float32(3.94e-9)) / first.y_scale)
    assert torch.equal(y[:, 0], z[:, 0])
    assert (y[:, 0] - (want + first.y_zero)).abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear"}, "choose one of fp, fp_original, quantized, original"),
        ({"mode": "int8"}, "choose one of float_order, integer"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"head": "original", "num_classes": 7}, "has 5 classes, not 7"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        McuNet(tiny_model(), **{"num_classes": 5, "head": "fp", "mode": "integer"} | options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 16, 16),
        torch.zeros(1, 4, 16, 16),
        torch.full((1, 3, 16, 16), 128.0),
        torch.full((1, 3, 16, 16), -129.0),
        torch.full((1, 3, 16, 16), float("nan")),
        torch.zeros(1, 3, 16, 17),
    ],
)
def test_wrong_input_is_refused(mode, x):
    with pytest.raises(UserError, match="input must be"):
        net_of(mode)(x)
