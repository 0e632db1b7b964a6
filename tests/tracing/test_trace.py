import csv
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from octo_exp.hw import gemm_cycles
from octo_exp.workload import ROLES
from tests.tracing.helpers import lenet5, roles, shapes, traced

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "scalesim"
ROLE_OF = {"fwd": "output", "dgrad": "grad_input", "wgrad": "grad_weight"}


def test_lenet5_gives_the_golden_training_step():
    with (GOLDEN / "lenet5_train_b4_col2im_gemm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    golden = [(ROLE_OF[row["Layer"].split("_")[1]], int(row["M"]), int(row["N"]), int(row["K"])) for row in rows]
    workload = traced(lenet5(), (1, 32, 32), batch_size=4)
    assert [(gemm.role, gemm.m, gemm.n, gemm.k) for gemm in workload.gemms] == golden
    assert list(roles(workload)) == ["0.0", "1.0", "2.0", "3", "5"]
    assert all(gemm.count == 1 for gemm in workload.gemms)
    assert (workload.batch_size, workload.grad_input_form) == (4, "col2im")


def test_col2im_step_does_three_forward_passes_less_the_first_layer():
    workload = traced(lenet5(), (1, 32, 32), batch_size=4)
    forward = sum(gemm.macs for gemm in workload.of_role("output"))
    assert workload.macs == 3 * forward - workload.gemms[0].macs


def test_im2col_form_of_lenet5():
    gemms = traced(lenet5(), (1, 32, 32), batch_size=4, form="im2col").of_role("grad_input")
    assert [(gemm.m, gemm.n, gemm.k) for gemm in gemms] == [
        (4 * 14 * 14, 6, 16 * 25),
        (4 * 5 * 5, 16, 120 * 25),
        (4, 120, 84),
        (4, 84, 10),
    ]
    for dataflow, total in (("os", 43428), ("is", 146414)):
        cycles = [
            gemm_cycles(gemm.m, gemm.n, gemm.k, rows=16, cols=16, dataflow=dataflow, convention="scalesim")
            for gemm in gemms
        ]
        assert int(sum(cycles)) == total


def count_and_compute(layer, x, grad, form):
    """Multiply one pair at a time: role -> (products formed, result); padding counts as the GEMM counts it."""
    kh, kw = layer.kernel_size
    (stride, _), (dilation, _), (pad, _) = layer.stride, layer.dilation, layer.padding
    batch, channels, height, width = x.shape
    _, filters, rows, cols = grad.shape
    per_in, per_out = channels // layer.groups, filters // layer.groups
    weight = layer.weight.detach()
    padded = F.pad(x, (pad,) * 4)
    results = {
        "output": torch.zeros_like(grad),
        "grad_input": torch.zeros_like(padded),
        "grad_weight": torch.zeros_like(weight),
    }
    counts = dict.fromkeys(results, 0)
    for b, o, r, c in product(range(batch), range(filters), range(rows), range(cols)):
        for i, y, z in product(range(per_in), range(kh), range(kw)):
            source = (b, o // per_out * per_in + i, r * stride + y * dilation, c * stride + z * dilation)
            results["output"][b, o, r, c] += padded[source] * weight[o, i, y, z]
            results["grad_weight"][o, i, y, z] += padded[source] * grad[b, o, r, c]
            results["grad_input"][source] += grad[b, o, r, c] * weight[o, i, y, z]
            for role in counts:
                counts[role] += 1
    results["grad_input"] = results["grad_input"][:, :, pad : pad + height, pad : pad + width]
    if form == "im2col":
        results["grad_input"] = torch.zeros_like(x)
        counts["grad_input"] = 0
        for b, i, h, w in product(range(batch), range(channels), range(height), range(width)):
            group = i // per_in
            for o, y, z in product(range(per_out), range(kh), range(kw)):
                counts["grad_input"] += 1
                r, off_r = divmod(h + pad - y * dilation, stride)
                c, off_c = divmod(w + pad - z * dilation, stride)
                if off_r == off_c == 0 and 0 <= r < rows and 0 <= c < cols:
                    o_all = group * per_out + o
                    value = grad[b, o_all, r, c] * weight[o_all, i % per_in, y, z]
                    results["grad_input"][b, i, h, w] += value
    return counts, results


@pytest.mark.parametrize("form", ["col2im", "im2col"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"groups": 4, "padding": 1, "out_channels": 8},
        {"kernel_size": (1, 3), "groups": 2, "stride": 2},
    ],
    ids=["plain", "stride", "dilation", "groups", "depthwise", "oblong"],
)
def test_macs_equal_a_count_of_every_product(options, form):
    given = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "bias": False, "dtype": torch.float64}
    layer = nn.Conv2d(**(given | options))
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    want = dict(zip(("grad_input", "grad_weight"), torch.autograd.grad(y, (x, layer.weight), grad), strict=True))
    counts, results = count_and_compute(layer, x.detach(), grad, form)
    for role, result in {"output": y.detach(), **want}.items():
        torch.testing.assert_close(results[role], result, rtol=1e-12, atol=1e-12)

    # A trainable layer in front, so that the convolution has a gradient to hand on.
    net = nn.Sequential(nn.BatchNorm2d(4, dtype=torch.float64), layer)
    workload = traced(net, (4, 5, 6), form=form)
    assert {gemm.role: gemm.macs for gemm in workload.gemms} == counts


def test_groups_are_identical_gemms():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8))
    assert shapes(traced(net, (3, 8, 8)), "1") == {
        "output": (2 * 16, 1, 9, 8),
        "grad_input": (2 * 16, 9, 1, 8),
        "grad_weight": (9, 1, 2 * 16, 8),
    }
    assert shapes(traced(net, (3, 8, 8), form="im2col"), "1")["grad_input"] == (2 * 64, 1, 9, 8)


def test_same_padding_keeps_the_positions():
    net = nn.Conv2d(3, 8, (4, 3), padding="same", dilation=2)
    assert shapes(traced(net, (3, 7, 9)), "")["output"] == (2 * 63, 8, 36, 1)


def test_linear_over_a_sequence_counts_every_position():
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    workload = traced(net, (7, 6), batch_size=2)
    assert shapes(workload, "1") == {
        "output": (14, 3, 5, 1),
        "grad_input": (14, 5, 3, 1),
        "grad_weight": (5, 3, 14, 1),
    }


class Residual(nn.Module):
    """Two layers read the network's input; one layer is called twice."""

    def __init__(self):
        super().__init__()
        self.shortcut = nn.Conv2d(3, 8, 1, stride=2)
        self.main = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        y = self.shared(self.main(x))
        return self.shared(input=y) + self.shortcut(x)


def test_branches_and_repeated_calls_in_order_of_execution():
    assert roles(traced(Residual(), (3, 8, 8))) == {
        "main": ["output", "grad_weight"],
        "shared": list(ROLES),
        "shared#2": list(ROLES),
        "shortcut": ["output", "grad_weight"],
    }


def test_a_flattened_input_is_still_the_networks_input():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    assert roles(traced(net, (3, 2, 2))) == {"1": ["output", "grad_weight"], "2": list(ROLES)}


def test_frozen_layer_has_no_grad_weight():
    net = lenet5()
    by_name = roles(traced(net, (1, 32, 32), frozen=frozenset({"1.0"})))
    net[1][0].weight.requires_grad_(False)
    by_flag = roles(traced(net, (1, 32, 32)))
    assert by_name["1.0"] == by_flag["1.0"] == ["output", "grad_input"]
    assert by_name["0.0"] == ["output", "grad_weight"]
    assert by_name["2.0"] == list(ROLES)


def test_a_frozen_front_needs_no_gradient_behind_it():
    found = roles(traced(lenet5(), (1, 32, 32), frozen=frozenset({"0", "1"})))
    assert found["0.0"] == found["1.0"] == ["output"]
    assert found["2.0"] == ["output", "grad_weight"]
    assert found["3"] == list(ROLES)


def test_a_trained_bias_before_a_frozen_weight_still_needs_the_gradient_behind_it():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].weight.requires_grad_(False)
    assert roles(traced(net, (4,))) == {"0": ["output"], "1": list(ROLES)}


class Quantized(nn.Conv2d):
    """Stands for a quantized layer: its own forward must not run, its widths are read."""

    operand_bits = {"output": (8, 4), "grad_input": (8, 8)}  # noqa: RUF012

    def forward(self, x):
        raise AssertionError("the quantized forward ran")

    def _conv_forward(self, *args):
        raise AssertionError("the quantized forward ran")


class QuantizedLinear(nn.Linear):
    operand_bits = None

    def forward(self, x):
        raise AssertionError("the quantized forward ran")


def test_quantized_layers_are_traced_by_their_float_forward_and_keep_their_own():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), Quantized(2, 2, 3), nn.Flatten(), QuantizedLinear(18, 3))
    workload = traced(net, (1, 5, 5))
    bits = {(gemm.layer, gemm.role): (gemm.bits_a, gemm.bits_b) for gemm in workload.gemms}
    assert bits["1", "output"] == (8, 4)
    assert bits["1", "grad_input"] == (8, 8)
    assert bits["1", "grad_weight"] == bits["0", "output"] == bits["3", "output"] == (32, 32)
    with pytest.raises(AssertionError, match="quantized forward ran"):
        net(torch.zeros(1, 1, 5, 5))


def test_the_net_is_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fired = []
    net[0].register_forward_hook(lambda *_: fired.append("hook"))
    traced(net, (1, 5, 5), frozen=frozenset({"0"}))
    assert not fired
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net(torch.zeros(2, 1, 5, 5))
    assert fired == ["hook"]


class Watcher:
    """A callback that a layer reports to; it must never be copied."""

    def observe(self, *_):
        raise AssertionError("the original's observer ran")

    def __deepcopy__(self, memo):
        raise AssertionError("the watcher was copied")


def test_a_layers_observer_is_not_copied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].observer = Watcher().observe
    net[0].forward = net[0].forward
    assert roles(traced(net, (4,))) == {"0": ["output", "grad_weight"], "1": list(ROLES)}


def test_inference_mode_around_it_changes_nothing():
    want = traced(lenet5(), (1, 32, 32))
    with torch.inference_mode():
        assert traced(lenet5(), (1, 32, 32)) == want


class Centered(nn.Module):
    """Holds a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.mean = torch.ones(4)

    def forward(self, x):
        return self.linear(x - self.mean)


def test_plain_tensor_attributes_move_along():
    assert roles(traced(Centered(), (4,))) == {"linear": ["output", "grad_weight"]}
