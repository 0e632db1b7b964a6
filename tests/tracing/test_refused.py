"""What cannot be priced is refused by its name and its share of the forward MACs, before anything else."""

import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from octo_exp.base.errors import UserError
from tests.tracing.helpers import lenet5, traced


class Taking(nn.Module):
    """Runs a layer whose inputs or outputs are not one tensor."""

    def __init__(self, layer, run):
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, x):
        return self.run(self.layer, x)


def first(layer, x):
    return layer(x)[0]


def itself(layer, x):
    return layer(x, x, x)[0]


# Net, shape of one input, refused layer, its kind, its MACs and those of the other layers for one input, by hand.
RUNNING = {
    "transposed": (
        [nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 5, 3)],
        (3, 8, 8),
        ("1", "ConvTranspose2d", 64 * 4 * 5 * 9, 64 * 3 * 4),
    ),
    "transposed, grouped, strided": (
        [nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)],
        (3, 8, 8),
        ("1", "ConvTranspose2d", 64 * 4 * 3 * 9, 64 * 3 * 4),
    ),
    "sequence": ([nn.Linear(8, 8), nn.Conv1d(4, 6, 3)], (4, 8), ("1", "Conv1d", 6 * 4 * 6 * 3, 4 * 8 * 8)),
    "volume": (
        [nn.Conv3d(3, 4, 3), nn.Flatten(), nn.Linear(108, 2)],
        (3, 5, 5, 5),
        ("0", "Conv3d", 27 * 3 * 4 * 27, 108 * 2),
    ),
    "lstm": (
        [nn.Linear(3, 4), Taking(nn.LSTM(4, 6, batch_first=True), first), nn.Linear(6, 2)],
        (7, 3),
        ("1.layer", "LSTM", 7 * 4 * 6 * (4 + 6), 7 * 3 * 4 + 7 * 6 * 2),
    ),
    "gru, two layers": (
        [nn.Linear(3, 4), Taking(nn.GRU(4, 6, num_layers=2, batch_first=True), first)],
        (7, 3),
        ("1.layer", "GRU", 7 * 3 * 6 * (4 + 6) + 7 * 3 * 6 * (6 + 6), 7 * 3 * 4),
    ),
    "gru cell": (
        [nn.Linear(3, 4), nn.GRUCell(4, 6), nn.Linear(6, 2)],
        (3,),
        ("1", "GRUCell", 3 * 6 * (4 + 6), 3 * 4 + 6 * 2),
    ),
    # Projections, scores, their sums of values, the projection back.
    "attention": (
        [nn.Linear(3, 4), Taking(nn.MultiheadAttention(4, 2, batch_first=True), itself)],
        (7, 3),
        ("1.layer", "MultiheadAttention", 7 * 4 * 12 + 2 * 7 * 7 * 4 + 7 * 4 * 4, 7 * 3 * 4),
    ),
    "transformer": (
        [nn.Linear(3, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)],
        (7, 3),
        (
            "1.self_attn",
            "MultiheadAttention",
            7 * 4 * 12 + 2 * 7 * 7 * 4 + 7 * 4 * 4,
            7 * 3 * 4 + 2 * 7 * 4 * 8,
        ),
    ),
}


@pytest.mark.parametrize("case", RUNNING)
def test_a_layer_that_is_not_counted_is_refused_with_its_share(case):
    layers, shape, (name, kind, macs, others) = RUNNING[case]
    # Nothing but the trace may refuse it.
    nn.Sequential(*layers)(torch.zeros(2, *shape))
    expected = (
        f"layer {name!r} ({kind}) with {100 * macs / (macs + others):.1f} % of the forward MACs cannot be priced: "
        "only the MACs of nn.Conv2d and nn.Linear are counted; replace it, or run without prices (~callbacks.cost)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        traced(nn.Sequential(*layers), shape)


def test_the_largest_of_several_is_named():
    layers = [nn.Conv1d(2, 2, 1), nn.Conv1d(2, 6, 1), nn.Conv1d(6, 1, 1), nn.Linear(5, 4)]
    # 12 of 4 + 12 + 6 + 20 products, each at 5 positions but the linear layer's.
    with pytest.raises(UserError, match=rf"layer '1' \(Conv1d\) with {100 * 60 / 130:.1f} % .*, nor can 2 more"):
        traced(nn.Sequential(*layers), (2, 5))


class Multiplying(nn.Module):
    def __init__(self, multiply):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        self.multiply = multiply

    def forward(self, x):
        return self.multiply(x, self.weight)


@pytest.mark.parametrize(
    ("multiply", "share"),
    [
        (F.linear, "57.1 %"),
        (lambda x, w: torch.einsum("bi,ij->bj", x, w), "57.1 %"),
        (lambda x, w: F.conv1d(x[:, None], w[:1, None, :2]), "33.3 %"),
        (lambda x, w: x @ w[0], "an unknown share"),
        (lambda x, w: torch.dot(x[0], w[0]), "an unknown share"),
        (lambda x, w: F.bilinear(x, x, w.expand(4, 4, 4)), "an unknown share"),
    ],
    ids=["linear", "einsum", "conv1d", "vector", "dot", "bilinear"],
)
def test_a_product_outside_of_a_counted_layer_is_refused(multiply, share):
    # A linear layer of 12 products, then 16 or 6 of its own.
    with pytest.raises(UserError, match=rf"layer '1' \(Multiplying\) with {share} .* cannot be priced"):
        traced(nn.Sequential(nn.Linear(3, 4), Multiplying(multiply)), (3,))


def test_what_the_flop_counter_does_not_know_has_an_unknown_share():
    net = nn.Sequential(nn.Linear(3, 4), Taking(nn.Bilinear(4, 4, 2), lambda layer, x: layer(x, x)))
    net(torch.zeros(2, 3))
    with pytest.raises(UserError, match=r"layer '1.layer' \(Bilinear\) with an unknown share of the MACs cannot"):
        traced(net, (3,))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.ConvTranspose2d(3, 4, 99), "ConvTranspose2d"),
        (nn.Conv1d(5, 4, 3), "Conv1d"),
        (nn.Conv3d(3, 4, 3), "Conv3d"),
        (nn.LSTM(5, 4), "LSTM"),
        (nn.GRUCell(3, 4), "GRUCell"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.Bilinear(3, 3, 2), "Bilinear"),
    ],
)
def test_a_net_that_does_not_run_is_refused_by_that_layers_name_too(layer, kind):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(layer), nn.Linear(77, 2))
    with pytest.raises(UserError, match=rf"layer '1.0' \({kind}\) with .* cannot be priced"):
        traced(net, (3, 8, 8))


def test_a_lazy_layer_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        net = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(UserError, match=r"layer '0' \(LazyLinear\) has no shape yet"):
        traced(net, (4,))


def test_a_shape_that_does_not_fit_is_one_line_with_the_layers_name():
    with pytest.raises(UserError, match=r"cannot trace layer '0.0' \(Conv2d\) on an input of shape") as caught:
        traced(lenet5(), (3, 32, 32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "direct"}, "grad_input_form must be one of"),
        ({"batch_size": 0}, "batch_size .* got 0"),
        ({"batch_size": 10**400}, "batch_size must be at most 4294967296, got 1e400"),
        ({"frozen": frozenset({"3.0"})}, "cannot freeze '3.0': the net has no such layer; did you mean"),
        ({"frozen": frozenset({"zzzzz"})}, "its first layer is '0'"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(UserError, match=message):
        traced(lenet5(), (1, 32, 32), **change)


def test_a_net_without_gemms_is_refused():
    with pytest.raises(UserError, match="nothing to price"):
        traced(nn.Sequential(nn.ReLU()), (4,))
