"""What a scheme adds to the work beside the GEMMs, and what leaves a layer."""

import pytest
from torch import nn

from octo_exp.nn.convert import convert
from octo_exp.quant.forms import Stochastic
from octo_exp.quant.rounding import Clock
from octo_exp.workload import QUANTIZE_OPS
from tests.nn.helpers import scheme
from tests.tracing.helpers import traced

# A batch of 2 through Linear(6, 4) and Linear(4, 3).
X, Y, W = 2 * 4, 2 * 3, 12


def linear(name="int8", **changes):
    """(role, kind) -> (operations, bytes read, bytes written) of the second of two layers."""
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    convert(net, scheme(name, **changes), impl="torch", clock=Clock())
    work = [item for item in traced(net, (6,)).vector if item.layer == "1"]
    return {(w.role, w.kind): (w.operations, w.bytes_read, w.bytes_written) for w in work}


PLAIN = linear()


def added(name="int8", **changes):
    """What a change adds to operations, by role and kind."""
    found = {key: value[0] for key, value in linear(name, **changes).items()}
    keys = {*found, *PLAIN}
    differences = {key: found.get(key, 0) - PLAIN.get(key, (0,))[0] for key in keys}
    return {key: difference for key, difference in differences.items() if difference}


def test_drawn_noise_costs_a_draw_an_element():
    assert Stochastic.operations > QUANTIZE_OPS
    assert added(g__rounding="stochastic") == {("grad_input", "quantize"): Stochastic.operations * Y}
    assert added(x__rounding="stochastic") == {("output", "quantize"): Stochastic.operations * X}


def test_a_role_with_codes_of_its_own_costs_a_pass_and_scales_that_vary_another():
    tensor, channel = "{granularity:tensor}", "{granularity:channel}"
    assert added(g_weight=tensor) == {("grad_weight", "quantize"): QUANTIZE_OPS * Y}
    assert added(x_weight=tensor) == {("output", "quantize"): QUANTIZE_OPS * X}
    # The weight is quantised in each backward pass anyway.
    assert added(w_input=tensor) == {}
    by_sample = added(x__granularity="sample", x_weight=tensor, g__granularity="sample", g_weight=tensor)
    assert by_sample == {
        ("output", "quantize"): QUANTIZE_OPS * X,
        ("output", "elementwise"): Y,
        ("grad_weight", "quantize"): QUANTIZE_OPS * Y,
        ("grad_input", "elementwise"): X,
    }
    assert added(g_weight=channel) == {
        ("grad_weight", "quantize"): QUANTIZE_OPS * Y,
        ("grad_weight", "elementwise"): W,
    }
    assert added(w_input="{granularity:input_channel}") == {("grad_input", "elementwise"): X}


# The sums of a tensor and of its square; the error of every code.
@pytest.mark.parametrize(("form", "operations"), [("ratio", 0), ("gaussian", 3), ("learned", 4)])
def test_clipping_costs_its_statistics(form, operations):
    costs = added("prc", clip=form)
    assert costs == ({("grad_input", "quantize"): operations * Y} if operations else {})


def test_a_zero_point_costs_the_sums_of_the_codes():
    costs = added(x__symmetric="false")
    assert costs == {("output", "elementwise"): W, ("grad_weight", "elementwise"): Y}


def test_compensation_costs_its_parameters():
    # Affine, three parameters a channel.
    costs = added("lac", x__symmetric="true", compensation="affine", compensation__granularity="channel")
    three = 3 * 3
    assert costs == {
        ("output", "elementwise"): three,
        ("grad_weight", "elementwise"): three,
        ("grad_weight", "optimizer"): three,
    }


def test_roles_in_bf16_cost_their_casts():
    weight = linear(grad_weight="bf16")
    # The kept input, and the gradient.
    assert weight["output", "elementwise"] == (X, 4 * X, 2 * X)
    assert weight["grad_weight", "elementwise"][0] == PLAIN["grad_weight", "elementwise"][0] + Y
    both = linear(output="bf16", grad_input="bf16", grad_weight="bf16")
    assert both["output", "elementwise"] == (2 * X + W + Y, 4 * (2 * X + W), 2 * (2 * X + W))
    assert both["grad_input", "elementwise"] == (Y + W, 4 * (Y + W), 2 * (Y + W))


def test_a_hindsight_range_masks_what_it_clipped():
    operations, read, written = linear(x__range="hindsight")["grad_input", "elementwise"]
    # A bit an element, rows rounded up to bytes.
    assert (operations, read, written) == (X, 2 + 4 * X, 4 * X)


@pytest.mark.parametrize(("saved", "width", "operations"), [("int8", 1, 4), ("bf16", 2, 1)])
def test_a_saved_norm_writes_its_input_and_reads_it_again(saved, width, operations):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
    convert(net, scheme("int8", norm_input=saved), impl="torch", clock=Clock())
    elements = 2 * 4 * 9
    size = 4 * elements
    work = {(w.role, w.kind): w for w in traced(net, (3, 3, 3)).vector if w.layer == "1"}
    found = {key: (w.operations, w.bytes_read, w.bytes_written) for key, w in work.items()}
    assert found == {
        ("output", "norm"): (4 * elements, size, size),
        ("output", "quantize"): (operations * elements, size, width * elements),
        ("grad_input", "norm"): (8 * elements, size + width * elements, size),
        ("grad_weight", "optimizer"): (8, 64, 32),
    }


def test_a_mean_reads_every_element():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    work = {(w.role, w.kind): w.operations for w in traced(net, (3, 5, 5)).vector if w.layer == "1"}
    assert work == {("output", "elementwise"): 2 * 4 * 25, ("grad_input", "elementwise"): 2 * 4 * 25}


def outputs(net, shape, **options):
    return {(g.layer, g.role): (g.elements_out, g.bits_out) for g in traced(net, shape, **options).gemms}


def test_what_leaves_a_pooled_block_is_pooled():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 2))
    assert outputs(net, (3, 7, 7))["0", "output"] == (2 * 8 * 49, 32)
    convert(net, scheme("int8"), impl="torch", clock=Clock())
    found = outputs(net, (3, 7, 7))
    assert found["0", "output"] == (2 * 8 * 9, 32)
    assert found["0", "grad_weight"] == (27 * 8, 32)
    # The exact error is given back before the pooling.
    oracle = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 2))
    convert(oracle, scheme("octo_ec"), impl="torch", clock=Clock())
    assert outputs(oracle, (3, 7, 7))["0", "output"] == (2 * 8 * 49, 32)


def test_groups_share_what_leaves():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.MaxPool2d(2))
    convert(net, scheme("int8"), impl="torch", clock=Clock())
    (gemm,) = traced(net, (4, 6, 6)).of_role("output")
    assert (gemm.count, gemm.elements_out) == (4, 2 * 2 * 4)


def test_autocast_passes_on_bf16():
    found = outputs(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), (6,), autocast=True)
    assert found == {
        ("0", "output"): (8, 16),
        ("0", "grad_weight"): (24, 32),
        ("1", "output"): (6, 16),
        ("1", "grad_input"): (8, 16),
        ("1", "grad_weight"): (12, 32),
    }


def test_products_of_grouped_layers_are_counted_for_every_group():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Flatten())
    convert(net, scheme("int8"), impl="torch", clock=Clock())
    buffers = traced(net, (4, 6, 6)).buffers
    # One image's accumulators: 16 positions of 8 channels, 4 bytes each.
    assert 4 * 16 * 8 in [b.bytes for b in buffers if b.kind == "workspace"]
