"""Acceptance check 9: what a sparse update sets on a network, and what it leaves bit-identical."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from octo_exp.graph.files.reader import read_model
from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.graph.train.update.rule import UpdateRule
from octo_exp.graph.train.update.selection import SparseUpdate
from tests.graph.update.helpers import MODELS, Net, golden_file, model_file, released_shapes, sparse
from tests.graph.update.test_configs import rule_of


def trained(net: Net) -> list[tuple[bool, bool]]:
    return [(conv.weight.requires_grad, conv.bias.requires_grad) for conv in net.convs]


@pytest.mark.parametrize("quantized_head", [False, True])
def test_the_head_trains_and_is_not_counted(quantized_head):
    net = Net(quantized_head=quantized_head).requires_grad_(False)
    head = [(True, True)] if quantized_head else []
    SparseUpdate(**sparse(n_bias=0)).apply(net)
    assert trained(net) == [(False, False)] * 4 + head
    SparseUpdate(**sparse(n_bias=2, n_weight=1)).apply(net)
    assert trained(net) == [(False, False)] * 2 + [(False, True), (True, True)] + head
    assert all(parameter.requires_grad for parameter in net.head.parameters())


def test_the_backward_pass_is_told_the_same():
    net = Net()
    SparseUpdate(**sparse(n_bias=3, weight_idx=[2, 3], ratio=[0.5, 1])).apply(net)
    updates = [conv.update for conv in net.convs]
    assert [(u.train_weight, u.train_bias) for u in updates] == trained(net)
    assert [None if u.kept is None else len(u.kept) for u in updates] == [None, None, 8, None]


def test_a_second_rule_replaces_the_first():
    net = Net()
    SparseUpdate(**sparse(n_bias=1, ratio=0.5)).apply(net)
    SparseUpdate(**sparse()).apply(net)
    assert trained(net) == [(True, True)] * 4
    assert all(conv.update.kept is None for conv in net.convs)


def test_the_seed_and_the_layer_decide_a_random_choice():
    def kept(seed: int) -> list[list[int]]:
        net = Net()
        SparseUpdate(**sparse(ratio=0.5, criteria="random", seed=seed)).apply(net)
        return [conv.update.kept.tolist() for conv in net.convs[2:]]

    assert kept(0) == kept(0) != kept(1)
    assert kept(0)[0] != kept(0)[1]


# Rates at which all that trains moves, by whole numbers where masters are whole.
@pytest.mark.parametrize(
    ("mode", "optimizer", "lr"),
    [("released", "sgd", 1e3), ("released", "sgd_scale", 0.1), ("strict_int8", "sgd_scale", 1.0)],
)
def test_after_ten_steps_the_frozen_is_bit_identical(mode, optimizer, lr):
    net = Net()
    scheme = SparseUpdate(**sparse(n_bias=3, weight_idx=[1, 2], ratio=[0.5, 0.25]))
    rule = UpdateRule(
        sparse=scheme, optimizer=optimizer, mode=mode, lr=lr, weight_decay=0.0, budget_kb=None, search=None
    )
    rule.apply(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step = rule.build_optimizer(net, rule.parameter_groups(net))
    for _ in range(10):
        step.zero_grad()
        loss = F.cross_entropy(net(torch.randn(8, 3, 4, 4)) / 100, torch.arange(8) % 3)
        loss.backward()
        step.step()
    for name in ("body.0.weight", "body.0.bias", "body.3.weight"):
        assert torch.equal(net.get_parameter(name), before[name])
    for name in ("body.1.bias", "body.2.bias", "body.3.bias", "head.weight", "head.bias"):
        assert not torch.equal(net.get_parameter(name), before[name])
    for index, axis in ((1, 1), (2, 0)):
        conv, old = net.convs[index], before[f"body.{index}.weight"]
        frozen = torch.ones(conv.in_channels, dtype=torch.bool)
        frozen[conv.update.kept] = False
        new, old = conv.weight.movedim(axis, 0), old.movedim(axis, 0)
        assert torch.equal(new[frozen], old[frozen])
        assert not torch.equal(new[~frozen], old[~frozen])


@pytest.mark.data
@pytest.mark.parametrize(("model", "option"), [("mbv2-w0.35", "mbv2_w035_99kb"), ("mcunet-5fps", "mcunet_5fps_99kb")])
def test_the_published_schemes_train_what_the_release_trains(model, option):
    golden, convs = np.load(golden_file(f"{model}.npz")), read_model(model_file(model)).convs
    scheme = rule_of(option).sparse
    assert list(scheme.weight_idx) == golden["sparse_manual_weight_idx"].tolist()
    assert list(scheme.ratio) == golden["sparse_ratio"].tolist()
    shapes = [
        LayerShape(
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            groups=conv.groups,
            kernel=conv.kernel_size,
            in_size=(conv.in_size, conv.in_size),
            out_size=(conv.out_size, conv.out_size),
        )
        for conv in convs
    ]
    rules = scheme.rules(shapes)
    assert [rule.train_weight for rule in rules] == golden["sparse_has_weight_grad"].tolist()
    assert [rule.train_bias for rule in rules] == golden["sparse_has_bias_grad"].tolist()


@pytest.mark.data
@pytest.mark.parametrize("model", MODELS)
def test_the_table_of_shapes_is_the_models(model):
    convs = read_model(model_file(model)).convs
    sizes = [(c.in_channels, c.out_channels, c.groups, c.kernel_size, c.in_size, c.out_size) for c in convs]
    assert sizes == [
        (s.in_channels, s.out_channels, s.groups, s.kernel, s.in_size[0], s.out_size[0]) for s in released_shapes(model)
    ]
