"""The GEMMs of microcontroller graphs: extents, widths, and what a sparse update leaves out."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.spec import Image, InputSpec, ModelSpec
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.trained import NOTHING
from octo_exp.hw import training_step_cost
from tests.graph.helpers import conv_spec, model_file, pool_spec, tiny_resnet
from tests.graph.update.test_configs import rule_of
from tests.hw.helpers import machine
from tests.tracing.helpers import roles, shapes, traced
from tests.tracing.mcu_helpers import freeze, priced, tiny

# Million MACs of an image, from the table of the release.
MACS = {"mbv2-w0.35": 16.65, "mcunet-5fps": 22.45, "proxyless-w0.3": 18.62}
# The updates of each, each of which trains no more of any convolution than the next.
NESTED = {
    "mcunet-5fps": ({"n_bias": 20, "n_weight": 0}, "mcunet_5fps_49kb", "mcunet_5fps_99kb", "mcunet_5fps_148kb"),
    "mbv2-w0.35": ({"n_bias": 25, "n_weight": 0}, "mbv2_w035_99kb", "mbv2_w035_123kb", "mbv2_w035_138kb"),
    "proxyless-w0.3": (
        {"n_bias": 21, "n_weight": 0},
        "proxyless_w03_49kb",
        "proxyless_w03_98kb",
        "proxyless_w03_148kb",
    ),
}
CYCLES = ("grad_input_cycles", "grad_weight_cycles", "train_step_cycles", "vector_cycles", "stall_cycles")


class Plain(nn.Module):
    """The convolutions of a graph as torch's own, in the same order, additions and pool included."""

    def __init__(self, net):
        super().__init__()
        self.convs = nn.ModuleList(map(plain_conv, net.convs))
        self.head = nn.Linear(self.convs[-1].out_channels, 5)

    def forward(self, x):
        x = self.convs[2](self.convs[1](self.convs[0](x)))
        x = x + self.convs[5](self.convs[4](self.convs[3](x)))
        x = self.convs[8](self.convs[7](self.convs[6](x)))
        return self.head(x.mean((2, 3)))


class PlainResnet(nn.Module):
    """A graph of pools and blocks with shortcuts as torch's own layers."""

    def __init__(self, net):
        super().__init__()
        first, pool, same, down, average = net.layers
        self.first, self.last = plain_conv(first), nn.AvgPool2d(average.step.kernel, average.step.stride)
        self.pool = nn.MaxPool2d(pool.step.kernel, pool.step.stride, pool.step.padding)
        self.same, self.down = (nn.Sequential(*map(plain_conv, block.body)) for block in (same, down))
        self.shortcut = plain_conv(down.shortcut[0])
        self.head = nn.Linear(net.head.linear.in_features, 5)

    def forward(self, x):
        x = self.pool(self.first(x))
        x = x + self.same(x)
        x = self.down(x) + self.shortcut(x)
        return self.head(self.last(x).flatten(1))


def plain_conv(c):
    g = c.geometry
    return nn.Conv2d(c.in_channels, c.out_channels, c.kernel_size, g.stride, g.padding, groups=g.groups)


def extents(workload):
    return [(g.role, g.m, g.n, g.k, g.count, g.elements_a, g.elements_b, g.elements_out) for g in workload.gemms]


@pytest.mark.parametrize("form", ["col2im", "im2col"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_gemms_of_a_full_update_are_those_of_the_same_float_net(form, batch_size):
    net = tiny()
    plain = traced(Plain(net), (3, 16, 16), batch_size=batch_size, form=form)
    assert extents(priced(net, batch_size=batch_size, form=form)) == extents(plain)
    assert len(plain.gemms) == 3 * 10 - 1


@pytest.mark.parametrize("form", ["col2im", "im2col"])
def test_the_gemms_of_blocks_with_shortcuts_and_of_what_follows_pools(form):
    net = tiny(spec=tiny_resnet())
    plain = traced(PlainResnet(net), (3, 14, 14), batch_size=3, form=form)
    assert extents(priced(net, side=14, form=form)) == extents(plain)
    # A window of one tap every second row: three quarters of the shortcut's input are never read.
    (shortcut,) = (g for g in priced(net, side=14).of_role("output") if g.layer.endswith("shortcut.0"))
    assert (shortcut.m, shortcut.elements_a) == (3 * 16, 3 * 6 * 16)


def test_what_padding_and_strides_leave_unread():
    rng, image = np.random.default_rng(0), Image(3, 8, 0.05, 0)
    conv = conv_spec(rng, image, 4, 1, stride=3, padding=1)
    layers = (conv, pool_spec(conv.gives, "average", 4, 4))
    head = conv_spec(rng, conv.gives._replace(size=1), 5, 1)
    net = tiny(spec=ModelSpec(input=InputSpec(scale=0.05, zero=0), layers=layers, classifier=head))
    product = priced(net, side=8).gemms[0]
    # Rows -1, 2, 5 and 8 are met, of which two are there; columns alike.
    assert (product.m, product.elements_a) == (3 * 16, 3 * 3 * 4)


def test_layers_are_named_as_the_net_names_them():
    net = tiny()
    names = {module: name for name, module in net.named_modules()}
    assert list(roles(priced(net))) == [*(names[conv] for conv in net.convs), "head.linear"]


def test_products_are_int8_forward_and_with_float_gradients_backward():
    widths = {(g.role, g.bits_a, g.bits_b, g.bits_out) for g in priced(tiny()).gemms if g.layer != "head.linear"}
    assert widths == {("output", 8, 8, 8), ("grad_input", 32, 8, 32), ("grad_weight", 8, 32, 32)}
    head = {(g.bits_a, g.bits_b, g.bits_out) for g in priced(tiny()).gemms if g.layer == "head.linear"}
    assert head == {(32, 32, 32)}
    assert {g.width for g in priced(tiny()).of_role("grad_weight")} == {"fp32"}


def test_float_order_multiplies_floats():
    workload, integer = priced(tiny(mode="float_order")), priced(tiny())
    assert {(g.bits_a, g.bits_b, g.bits_out) for g in workload.gemms} == {(32, 32, 32)}
    assert extents(workload) == extents(integer)


def test_an_int8_head_is_a_convolution_like_the_others():
    workload = priced(tiny(head="quantized"))
    assert roles(workload)["head"] == ["output", "grad_input", "grad_weight"]
    assert shapes(workload, "head")["output"] == (3, 5, 10, 1)
    assert {g.width for g in workload.gemms if g.layer == "head"} == {"int8", "fp32"}


def test_nothing_is_computed_before_the_first_trained_convolution():
    net = tiny(n_bias=4, n_weight=2)
    names = [name for conv in net.convs for name, module in net.named_modules() if module is conv]
    found = [roles(priced(net))[name] for name in names]
    # The first trains its bias alone, which takes no product.
    assert found[:6] == [["output"]] * 6
    assert found[6] == ["output", "grad_input"]
    assert found[7:] == [["output", "grad_input", "grad_weight"]] * 2


def test_the_head_alone():
    workload = priced(tiny(n_bias=0))
    assert roles(workload)["head.linear"] == ["output", "grad_weight"]
    assert {g.layer for g in workload.gemms if g.role != "output"} == {"head.linear"}


def test_a_gradient_passes_around_a_frozen_block():
    # Of the block with the addition nothing trains, but its input has a gradient: both branches pass it.
    workload = priced(freeze(tiny(), 3, 4, 5))
    frozen = [name for name, found in roles(workload).items() if found == ["output", "grad_input"]]
    assert len(frozen) == 3


@pytest.mark.parametrize(("ratio", "pointwise", "depthwise"), [(0.5, 3, 8), (0.2, 1, 3), (0.999, 5, 15), (0.01, 0, 0)])
def test_kept_channels_alone_have_a_weight_gradient(ratio, pointwise, depthwise):
    # Convolutions 3 (pointwise, 6 -> 16 on 8x8) and 4 (depthwise 5x5, 16 channels).
    net = tiny(weight_idx=[3, 4], ratio=ratio)
    workload, full = priced(net), priced(tiny())
    names = list(roles(workload))
    expected = [(pointwise, 16, 3 * 64, 1), (25, 1, 3 * 64, depthwise)]
    for name, extent in zip(names[3:5], expected, strict=True):
        found = shapes(workload, name)
        assert found.pop("grad_weight", None) == (extent if pointwise else None)
        assert found == {role: e for role, e in shapes(full, name).items() if role != "grad_weight"}
    assert all("grad_weight" not in roles(workload)[name] for name in (*names[:3], *names[5:9]))


def test_what_the_parameters_say_counts_too():
    net = tiny()
    net.convs[4].weight.requires_grad_(False)
    name = list(roles(priced(net)))[4]
    assert roles(priced(net))[name] == ["output", "grad_input"]


def test_an_update_that_freezes_what_requires_gradients():
    net = tiny()
    for conv in net.convs[:5]:
        conv.update = NOTHING
    workload, frozen = priced(net), priced(freeze(tiny(), 0, 1, 2, 3, 4))
    assert workload == frozen
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("mode", ["integer", "float_order"])
def test_the_net_is_left_as_it_is(mode):
    net = tiny(mode=mode, n_bias=4, n_weight=2, ratio=0.5)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    said = [(p.requires_grad, p.device.type, p.grad) for p in net.parameters()]
    with torch.inference_mode():
        inside = priced(net)
    assert inside == priced(net)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert [(p.requires_grad, p.device.type, p.grad) for p in net.parameters()] == said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": frozenset({"head"})}, "update="),
        ({"sparse": {"head": 0.5}}, "update="),
        ({"autocast": True}, "precision=32"),
        ({"side": 15}, r"takes images \[3, 16, 16\], got \[3, 15, 15\]"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UserError, match=message):
        priced(tiny(), **options)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16), (3, 16, 17)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(UserError, match="resize"):
        traced(tiny(), shape)


@pytest.mark.data
@pytest.mark.parametrize("model", MACS)
def test_macs_of_the_released_models(model):
    net = McuNet(read_model(model_file(model)), num_classes=10, head="fp", mode="integer")
    forward = priced(net, batch_size=1, side=128).of_role("output")
    macs = sum(gemm.macs for gemm in forward if gemm.layer != "head.linear")
    assert macs == net.spec.macs
    assert round(macs / 1e6, 2) == MACS[model]


@pytest.mark.data
@pytest.mark.parametrize("model", NESTED)
def test_an_update_that_trains_less_costs_less(model):
    profile = machine(rows=16, cols=16, vector_lanes=16, fp32_macs_per_pe_cycle=0.25)
    spec = read_model(model_file(model))
    reports = []
    for update in ({"n_bias": 0}, *NESTED[model], "full"):
        net = tiny(spec=spec, classes=10, **update) if isinstance(update, dict) else tiny(spec=spec, classes=10)
        if isinstance(update, str):
            rule_of(update).apply(net)
        workload = priced(net, batch_size=1, side=128)
        reports.append(training_step_cost(workload, profile, convention="exact", energy=None).totals())
    for less, more in pairwise(reports):
        assert less["forward_cycles"] == more["forward_cycles"]
        assert all(less[name] <= more[name] for name in CYCLES)
        assert less["train_step_cycles"] < more["train_step_cycles"]
        assert less["total_cycles"] < more["total_cycles"]
