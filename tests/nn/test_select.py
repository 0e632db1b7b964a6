"""What of other people's layers is quantised, and that every layer which is not is named with its reason."""

import copy
import logging
import pickle
from collections import OrderedDict
from types import MethodType

import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.nn.convert import convert
from octo_exp.nn.layers import QuantConv2d, QuantLayer, QuantLinear
from octo_exp.nn.select import Selection, all_float, never_ran, select
from octo_exp.quant.rounding import Clock
from tests.nn.helpers import relative, scheme


class Named(nn.Linear):
    """Computes what nn.Linear does."""

    def label(self) -> str:
        return "mine"


class Lora(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.a, self.b = nn.Parameter(torch.randn(2, sizes[0])), nn.Parameter(torch.randn(sizes[1], 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.a.t() @ self.b.t()


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.bias = nn.Parameter(torch.zeros(1, 6, 6)), nn.Parameter(torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table + self.bias


def converted(net: nn.Module, name: str = "int8", **changes: object) -> Selection:
    return convert(net, scheme(name, **changes), impl="torch", clock=Clock())


def strange_net() -> nn.Sequential:
    replaced = nn.Linear(6, 6)
    replaced.forward = MethodType(lambda self, x: x, replaced)
    return nn.Sequential(
        OrderedDict(
            lora=Lora(6, 6),
            conv1d=nn.Conv1d(6, 6, 1),
            tokens=Tokens(),
            up=nn.ConvTranspose2d(1, 1, 3),
            rnn=nn.LSTM(6, 6),
            attention=nn.MultiheadAttention(6, 2),
            wide=nn.Linear(6, 6).double(),
            replaced=replaced,
            norm=nn.LayerNorm([6, 6]),
            table=nn.Embedding(4, 6),
            fc=nn.Linear(6, 6),
        )
    )


def test_every_layer_that_stays_float_is_named_with_its_reason(caplog):
    with caplog.at_level(logging.INFO, "octo_exp.nn.convert"):
        selection = converted(strange_net())
    assert selection.quantized == ("fc",)
    assert selection.floats == {
        "lora": "Lora has a forward of its own, which may compute anything",
        "conv1d": "Conv1d has no quantised form",
        "up": "ConvTranspose2d has no quantised form",
        "rnn": "LSTM has no quantised form",
        "attention": "MultiheadAttention has no quantised form",
        "wide": "its weights are torch.float64, and those of quantised layers float32",
        "replaced": "Linear has a forward of its own, which may compute anything",
        "tokens": "parameters of its own (table): what it does with them is float",
    }
    (line,) = [record.getMessage() for record in caplog.records]
    assert all(f"{name} ({reason})" in line for name, reason in selection.floats.items())


def test_what_the_scheme_or_the_guard_leaves_float_is_named_too():
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    built = scheme("int8", skip="[first,'3']")
    selection = select(net, built, {"1": "bf16"})
    assert selection.quantized == ("2", "4")
    assert selection.floats == {"0": "quant.skip: first", "3": "quant.skip: 3", "1": "speed guard: bf16 is faster"}
    assert select(net, scheme("fp32")) == all_float(net, "quant=fp32 is float")
    assert list(all_float(net, "slow").floats) == ["0", "1", "2", "3", "4"]


def test_a_float_layer_is_an_end_of_the_net_and_may_be_skipped_by_name():
    net = nn.Sequential(OrderedDict(lora=Lora(6, 6), a=nn.Linear(6, 6), b=nn.Linear(6, 6)))
    assert select(net, scheme("int8", skip="[first]")).quantized == ("a", "b")
    assert select(net, scheme("int8", skip="[lora,a]")).quantized == ("b",)
    with pytest.raises(UserError, match=r"quant\.overrides: 'lora' matches no layer; layers: a, b"):
        select(net, scheme("int8", overrides="{lora: {bits: 4}}"))
    with pytest.raises(UserError, match=r"matches no layer.*; lora: Lora has a forward of its own"):
        select(nn.Sequential(OrderedDict(lora=Lora(2, 2))), scheme("int8"))


def test_a_subclass_that_computes_what_torch_does_is_quantised_and_stays_what_it_is():
    layer = Named(6, 4)
    plain, weight = copy.deepcopy(layer), layer.weight
    net = nn.Sequential(layer)
    assert converted(net).quantized == ("0",)
    assert net[0] is layer
    assert isinstance(layer, QuantLinear)
    assert isinstance(layer, Named)
    assert layer.label() == "mine"
    assert layer.weight is weight
    x = torch.randn(5, 6)
    assert 0 < relative(layer(x), plain(x)) <= 0.03
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert isinstance(twin[0], Named)
        assert torch.equal(twin(x), net(x))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=2, dilation=2),
        nn.Conv2d(4, 6, 2, padding="same"),
        nn.Conv2d(4, 6, (3, 4), padding="same", dilation=(1, 3)),
        *(nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["int8", "lac"])
def test_convolutions_of_every_kind_are_quantised(name, conv):
    layer = copy.deepcopy(conv)
    assert converted(nn.Sequential(layer), name).quantized == ("0",)
    assert isinstance(layer, QuantConv2d)
    x = torch.rand(3, 4, 9, 8)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(ours)
    expected = conv(theirs)
    g = torch.randn_like(expected)
    y.backward(g)
    expected.backward(g)
    assert relative(y, expected) <= 0.03
    assert relative(ours.grad, theirs.grad) <= 0.05
    assert relative(layer.weight.grad, conv.weight.grad) <= 0.05
    conv.zero_grad()


def test_a_quantised_layer_whose_weights_are_read_past_it_is_told():
    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.called(x) @ self.read.weight

    net = Past()
    converted(net)
    assert never_ran(net) == {}
    net(torch.randn(2, 4))
    assert list(never_ran(net)) == ["read"]
    assert [name for name, layer in net.named_modules() if isinstance(layer, QuantLayer)] == ["called", "read"]
