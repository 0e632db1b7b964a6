"""The modules of an integer net's steps: each of its step's kind and integers, together the net."""

import numpy as np
import pytest
import torch

from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.integers.integer_net import IntegerAdd, IntegerConv, IntegerPool
from octo_exp.graph.operations import INPUT, steps_of
from octo_exp.graph.parts import ConvSpec, PoolSpec, ResidualSpec
from tests.graph.helpers import tiny_model, tiny_resnet
from tests.graph.random_models import random_model

KINDS = {ConvSpec: IntegerConv, PoolSpec: IntegerPool, ResidualSpec: IntegerAdd}
MODELS = [tiny_model, tiny_resnet, *(lambda seed=seed: random_model(seed) for seed in range(20))]


@pytest.mark.parametrize("model", MODELS)
def test_a_step_has_the_module_of_its_part(model):
    net = IntegerNet(model())
    steps = net.steps()
    assert [step.name for step, _ in steps] == [step.name for step in steps_of(net.spec)]
    for step, module in steps:
        assert type(module) is KINDS[type(step.part)]
        if isinstance(module, IntegerConv):
            assert np.array_equal(module.weight.numpy(), step.part.weight)
            assert (module.x_zero, module.y_zero) == (step.takes[0].zero, step.gives.zero)
        elif isinstance(module, IntegerPool):
            assert (module.kind, module.kernel) == (step.part.kind, step.part.kernel)
        else:
            assert module.zeros == (*(image.zero for image in step.takes), step.gives.zero)


@pytest.mark.parametrize("model", MODELS)
def test_steps_one_after_another_are_the_net(model):
    net = IntegerNet(model()).eval()
    image = net.spec.image
    codes = torch.randint(-128, 128, (3, image.channels, image.size, image.size), dtype=torch.int8)
    made = {INPUT: codes}
    for step, module in net.steps():
        made[step.name] = module(*(made[name] for name in step.reads))
    assert torch.equal(made["classifier"].flatten(1), net.classify(codes))
