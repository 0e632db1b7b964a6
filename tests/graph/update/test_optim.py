"""Acceptance checks 8 and 13: the four optimizers against plain arithmetic; integers after every step where asked."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from octo_exp.base.errors import UserError
from octo_exp.graph.train.update.optimizers import INT32_MAX, INT32_MIN, make_integer
from octo_exp.graph.train.update.rule import OPTIMIZERS, SGD_FORMS, UpdateRule
from octo_exp.graph.train.update.selection import SparseUpdate
from octo_exp.runs.lit import LitClassifier
from tests.graph.update.helpers import Conv, Net, sparse


def rule(optimizer: str, mode: str = "released", *, lr: float = 0.01, weight_decay: float = 0.0, **changes):
    return UpdateRule(
        sparse=SparseUpdate(**sparse(**changes)),
        optimizer=optimizer,
        mode=mode,
        lr=lr,
        weight_decay=weight_decay,
        budget_kb=None,
        search=None,
    )


def loss_of(net: Net, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(net(x) / 100, torch.arange(len(x)) % 3)


def by_hand(net: Net, batches, *, lr: float, momentum: float, qas: bool, weight_decay: float) -> None:
    """v = momentum*v + g~ + decay*p; p -= lr*v."""
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for x in batches:
        gradients = torch.autograd.grad(loss_of(net, x), list(net.parameters()))
        for (name, p), g in zip(net.named_parameters(), gradients, strict=True):
            owner = net.get_submodule(name.rpartition(".")[0])
            if qas and isinstance(owner, Conv):
                scale = owner.w_scales if name.endswith("weight") else owner.w_scales * owner.x_scale
                g = g / scale.square().reshape(-1, *[1] * (g.dim() - 1))
            decay = weight_decay if name.endswith("weight") else 0.0
            velocity[name] = momentum * velocity[name] + g + decay * p.detach()
            p.data -= lr * velocity[name]


@pytest.mark.parametrize("optimizer", SGD_FORMS)
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("quantized_head", [False, True])
@pytest.mark.parametrize("by_closure", [False, True])
def test_four_steps_are_the_equations(optimizer, weight_decay, quantized_head, by_closure):
    qas, momentum = {"sgd": (0, 0.9), "sgd_nomom": (0, 0), "sgd_scale": (1, 0.9), "sgd_scale_nomom": (1, 0)}[optimizer]
    net = Net(quantized_head=quantized_head)
    expected = copy.deepcopy(net)
    batches = [torch.randn(8, 3, 4, 4) for _ in range(4)]
    r = rule(optimizer, lr=1e-4, weight_decay=weight_decay)
    step = r.build_optimizer(net, r.parameter_groups(net))
    for x in batches:

        def closure(x=x):
            step.zero_grad()
            loss = loss_of(net, x)
            loss.backward()
            return loss

        if by_closure:
            assert step.step(closure).requires_grad
        else:
            closure()
            step.step()
    by_hand(expected, batches, lr=1e-4, momentum=momentum, qas=bool(qas), weight_decay=weight_decay)
    before = Net(quantized_head=quantized_head)
    for (name, p), q in zip(net.named_parameters(), expected.parameters(), strict=True):
        # Four steps of a few roundings each.
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert not torch.equal(p, before.get_parameter(name))


def test_the_trainer_scales_the_gradients_of_this_step_once_for_four_batches_of_one():
    x, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % 3

    def trained(batch_size: int, accumulate: int) -> Net:
        torch.manual_seed(1)
        net, r = Net(), rule("sgd_scale", lr=1e-6)
        module = LitClassifier(
            net=net,
            num_classes=3,
            optimizer=partial(r.build_optimizer, net),
            scheduler=None,
            parameter_groups=r.parameter_groups,
            penalty=lambda net: None,
        )
        data = DataLoader(TensorDataset(x, labels), batch_size=batch_size)
        Trainer(
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            limit_val_batches=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data, data)
        return net

    torch.manual_seed(1)
    start, singly, whole = Net(), trained(1, 4), trained(4, 1)
    for (name, a), b in zip(singly.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert not torch.equal(a, start.get_parameter(name)), name


def stepped(mode: str, *, lr: float, steps: int = 3) -> Net:
    net, r = Net(), rule("sgd_scale_nomom", mode, lr=lr)
    step = r.build_optimizer(net, r.parameter_groups(net))
    for _ in range(steps):
        step.zero_grad()
        loss_of(net, torch.randn(8, 3, 4, 4)).backward()
        step.step()
    return net


@pytest.mark.parametrize("lr", [1e-3, 10.0])
def test_strict_masters_are_integers_after_every_step(lr):
    for steps in (1, 2):
        net = stepped("strict_int8", lr=lr, steps=steps)
        for conv in net.convs:
            assert torch.equal(conv.weight, conv.weight.round())
            assert conv.weight.abs().max() <= 127
            assert torch.equal(conv.bias, conv.bias.round())
            assert conv.bias.abs().max() <= 2.0**31
        assert not torch.equal(net.head.weight, net.head.weight.round())


def test_released_masters_are_neither_rounded_nor_clamped():
    net = stepped("released", lr=10.0)
    assert any(conv.weight.abs().max() > 127 for conv in net.convs)
    assert all(not torch.equal(conv.bias, conv.bias.round()) for conv in net.convs)


def test_rounding_is_half_to_even_within_the_limits():
    conv = Conv(7, 1)
    conv.weight.data = torch.tensor([-0.5, 1.5, 2.5, 126.6, 1e9, -127.4, -128.0]).reshape(1, 7, 1, 1)
    conv.bias.data = torch.tensor([3e9])
    make_integer(conv)
    assert conv.weight.flatten().tolist() == [0, 2, 2, 127, 127, -127, -127]
    assert conv.bias.item() == INT32_MAX
    conv.bias.data = torch.tensor([-3e9])
    make_integer(conv)
    assert conv.bias.item() == INT32_MIN
    # As an import and an export convert them.
    assert [float(np.float32(limit)) for limit in (-(2**31), 2**31 - 1)] == [INT32_MIN, INT32_MAX]


@pytest.mark.parametrize("mode", ["released", "strict_int8"])
def test_adam_is_torchs_and_strict_masters_stay_integers(mode):
    net, expected = Net(), Net()
    expected.load_state_dict(net.state_dict())
    r = rule("adam", mode, lr=0.6)
    step = r.build_optimizer(net, r.parameter_groups(net))
    twin = torch.optim.Adam(r.parameter_groups(expected), lr=0.6)
    for x in (torch.randn(8, 3, 4, 4) for _ in range(3)):
        for one, optimizer in ((net, step), (expected, twin)):
            optimizer.zero_grad()
            loss_of(one, x).backward()
            optimizer.step()
        for conv in expected.convs if mode == "strict_int8" else ():
            make_integer(conv)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), expected.parameters(), strict=True))
    whole = all(torch.equal(conv.weight, conv.weight.round()) for conv in net.convs)
    assert whole == (mode == "strict_int8")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_at_rate_0_moves_no_saturated_bias(optimizer):
    net, r = Net(), rule(optimizer, "strict_int8", lr=0.0)
    for conv in net.convs:
        conv.bias.data[:4] = torch.tensor([2**31 - 1, -(2**31), 2**31 - 128, 0], dtype=torch.int32)
    before, step = copy.deepcopy(net.state_dict()), r.build_optimizer(net, r.parameter_groups(net))
    loss_of(net, torch.randn(8, 3, 4, 4)).backward()
    step.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_frozen_masters_are_left_as_they_are():
    conv = Conv(7, 1)
    conv.weight.data += 0.25
    conv.bias.data.fill_(2.0**31)
    before = conv.weight.detach().clone()
    conv.requires_grad_(False)
    make_integer(conv)
    assert torch.equal(conv.weight, before)
    assert conv.bias.item() == 2.0**31


def test_decay_is_refused_where_it_would_move_frozen_channels():
    net, r = Net(), rule("sgd", weight_decay=1e-4, ratio=0.5)
    r.apply(net)
    with pytest.raises(UserError, match=r"^update\.weight_decay=0\.0001 would move the channels"):
        r.parameter_groups(net)
    r = rule("sgd", weight_decay=1e-4, n_bias=2)
    r.apply(net)
    weights, biases = r.parameter_groups(net)
    assert (len(weights["params"]), len(biases["params"]), biases["weight_decay"]) == (3, 3, 0.0)
