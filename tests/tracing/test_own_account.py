"""A stranger's module states its own account, and is priced beside ordinary layers."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.hw import step_memory
from octo_exp.tracing import optimizer_cost
from octo_exp.workload.products import output_shape
from tests.tracing.helpers import roles, traced


class Stated(nn.Module):
    """Runs a layer, and says what it is told to say."""

    def __init__(self, state, layer=None):
        super().__init__()
        self.state, self.layer = state, layer

    def forward(self, x):
        raise AssertionError("it was run")

    def account(self, account):
        self.state(self, account)


def as_its_layer(module, account):
    y = account.multiply(module.layer)
    if module.layer.weight.requires_grad:
        account.keep_input()
    account.make(y)


def beside(workload):
    """Work by layer, role and kind, but for the update: what learns is inside of the module."""
    return {(w.layer, w.role, w.kind): w for w in workload.vector if w.kind != "optimizer"}


CONVS = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": (3, 2), "stride": (2, 3), "padding": (0, 1), "bias": False},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 3, "groups": 2},
    "same": {"kernel_size": (3, 5), "padding": "same"},
    "pointwise": {"kernel_size": 1},
}


@pytest.mark.parametrize("form", ["col2im", "im2col"])
@pytest.mark.parametrize("name", CONVS)
def test_a_module_that_multiplies_as_a_convolution_costs_what_that_does(name, form):
    def net(middle):
        return nn.Sequential(nn.Conv2d(3, 4, 1), middle, nn.Flatten(), nn.LazyLinear(5))

    conv = nn.Conv2d(4, 6, **CONVS[name])
    plain, own = net(conv), net(Stated(as_its_layer, conv))
    plain(torch.zeros(1, 3, 9, 8))
    own[3] = plain[3]
    expected, found = (traced(model, (3, 9, 8), form=form) for model in (plain, own))
    assert found.gemms == expected.gemms
    assert beside(found) == beside(expected)
    memory = [step_memory(workload.buffers) for workload in (found, expected)]
    assert memory[0].kept_by_layer == memory[1].kept_by_layer
    assert memory[0].peak_bytes == memory[1].peak_bytes


@pytest.mark.parametrize("name", CONVS)
def test_the_shape_of_a_product_is_that_of_torch(name):
    conv = nn.Conv2d(4, 6, **CONVS[name])
    for shape in ((2, 4, 9, 8), (4, 7, 7)):
        assert output_shape(conv, shape) == tuple(conv(torch.zeros(shape)).shape)


def scores(module, account):
    batch, tokens, width = account.x_shape
    account.gemm("output", m=tokens, n=tokens, k=width, count=batch, bits=(8, 8))
    account.vector("output", "elementwise", 3 * batch * tokens**2, read=5, written=7)
    account.keep("activation", 100)
    account.use(40, backward=True)
    if account.grad_input:
        account.gemm("grad_input", m=tokens, n=width, k=tokens, count=batch)
    account.make((batch, tokens, tokens))


def test_what_it_says_stands_beside_ordinary_layers():
    workload = traced(nn.Sequential(nn.Linear(3, 4), Stated(scores), nn.Linear(7, 2)), (7, 3))
    assert [(g.layer, g.role) for g in workload.gemms] == [
        ("0", "output"), ("0", "grad_weight"), ("1", "output"), ("1", "grad_input"),
        ("2", "output"), ("2", "grad_input"), ("2", "grad_weight"),
    ]  # fmt: skip
    (own,) = (g for g in workload.gemms if (g.layer, g.role) == ("1", "output"))
    assert (own.m, own.n, own.k, own.count, own.bits_a, own.width) == (7, 7, 4, 2, 8, "int8")
    (work,) = (w for w in workload.vector if w.layer == "1")
    assert (work.operations, work.bytes_read, work.bytes_written) == (3 * 2 * 49, 5, 7)
    held = [(b.kind, b.bytes, b.first, b.last, b.kept) for b in workload.buffers if b.layer == "1"]
    # Events 0 to 2; one image's integer sums; the tensor that it makes is kept by the layer behind it.
    assert sorted(held) == [
        ("activation", 100, 1, 4, True), ("gradient", 4 * 98, 3, 4, False),
        ("workspace", 40, 4, 4, False), ("workspace", 4 * 49, 1, 1, False),
    ]  # fmt: skip
    assert step_memory(workload.buffers).kept_by_layer["2"] == 4 * 98


def test_it_owes_no_gradient_where_nothing_before_it_trains():
    net = nn.Sequential(Stated(scores), nn.Linear(7, 2))
    assert roles(traced(net, (7, 4))) == {"0": ["output"], "1": ["output", "grad_weight"]}


def test_a_second_call_has_a_name_of_its_own():
    module = Stated(as_its_layer, nn.Linear(4, 4))
    workload = traced(nn.Sequential(module, nn.ReLU(), module), (4,))
    assert roles(workload) == {"0": ["output", "grad_weight"], "0#2": ["output", "grad_input", "grad_weight"]}


def test_it_may_pass_its_input_on_and_pass_on_bf16():
    def narrow(module, account):
        account.make(account.x_shape, bits=16)

    net = nn.Sequential(nn.Linear(3, 4), Stated(lambda _, account: account.pass_on()), Stated(narrow), nn.Linear(4, 2))
    buffers = traced(net, (3,), autocast=True).buffers
    assert not [b for b in buffers if b.layer == "1"]
    # The layer behind it keeps the two rows of bf16 as they are.
    assert [b.bytes for b in buffers if b.layer == "3" and b.kind == "activation" and b.kept] == [2 * 2 * 4, 2 * 8]


class Sequence(nn.Conv1d):
    def account(self, account):
        batch, _, length = account.x_shape
        account.gemm("output", m=batch * length, n=self.out_channels, k=self.in_channels)
        account.make((batch, self.out_channels, length))


def test_a_kind_of_layer_that_nothing_counts_can_be_counted():
    assert roles(traced(nn.Sequential(Sequence(3, 5, 1)), (3, 8))) == {"0": ["output"]}
    net = nn.Sequential(Sequence(2, 2, 1), Stated(as_its_layer, nn.Linear(8, 3)), nn.Conv1d(2, 2, 1))
    macs, own = 8 * 2 * 2 + 2 * 8 * 3, 3 * 2 * 2
    with pytest.raises(UserError, match=rf"'2' \(Conv1d\) with {100 * own / (macs + own):.1f} % "):
        traced(net, (2, 8))


NONSENSE = {
    "negative extent": lambda a: a.gemm("output", m=-3, n=1, k=1),
    "unknown role": lambda a: a.gemm("forward", m=1, n=1, k=1),
    "unknown role of work": lambda a: a.vector("backward", "elementwise", 1),
    "unknown kind of work": lambda a: a.vector("output", "softmax", 1),
    "negative work": lambda a: a.vector("output", "pool", -1),
    "bytes that are no number": lambda a: a.vector("output", "pool", 1, read=0.5),
    "negative bytes": lambda a: a.keep("activation", -8),
    "unknown kind of bytes": lambda a: a.keep("tensor", 8),
    "negative shape": lambda a: a.make((2, -4)),
    "fractions of a shape": lambda a: a.make((2, 1.5)),
    "odd width": lambda a: a.make((2, 4), bits=12),
    "codes between layers": lambda a: a.make((2, 4), bits=8),
    "nothing made": lambda a: a.use(4),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_refused_in_one_line_with_the_modules_name(case):
    def state(module, account):
        NONSENSE[case](account)
        if case not in ("codes between layers", "nothing made"):
            account.make(account.x_shape)

    with pytest.raises(UserError, match=r"^layer 'own'") as caught:
        traced(Named(state), (3,))
    assert "\n" not in str(caught.value)


class Named(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.first, self.own = nn.Linear(3, 4), Stated(state)

    def forward(self, x):
        return self.own(self.first(x))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = Stated(as_its_layer, nn.Linear(4, 4))

    def forward(self, x):
        return self.own(x, x)


def test_a_call_with_two_tensors_is_refused():
    with pytest.raises(UserError, match=r"^layer 'own': an account is that of one tensor"):
        traced(Pair(), (4,))


def test_an_input_that_does_not_fit_is_one_line_with_the_layers_name():
    net = nn.Sequential(Stated(as_its_layer, nn.Conv2d(3, 4, 3)))
    for shape in ((2, 8, 8), (3, 2, 8)):
        with pytest.raises(UserError, match=r"cannot trace layer '0' \(Stated\) on an input .*: (it takes|the image)"):
            traced(net, shape)


def test_the_page_runs_as_it_stands(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "cost.md").read_text(), re.DOTALL)
    exec(compile(block, "docs/cost.md", "exec"), {"__name__": "page"})
    assert "1 grad_input 49 32 49 8" in capsys.readouterr().out


class Halved(torch.optim.SGD):
    def account(self, cost_of):
        plain = cost_of(torch.optim.SGD(self.param_groups[0]["params"], lr=0.1, momentum=0.9))
        return replace(plain, operations=plain.operations / 2)


def test_an_optimizer_that_states_its_cost_is_believed():
    parameters = nn.Linear(2, 2).parameters()
    plain = optimizer_cost(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9))
    assert optimizer_cost(Halved(parameters)) == replace(plain, operations=plain.operations / 2)
