from collections import OrderedDict

import pytest
import torch
from torch import nn

from octo_exp.base.errors import UserError
from octo_exp.nn.convert import compensation_penalty, convert, parameter_groups
from octo_exp.nn.float_block import FloatConv2d, FloatLinear
from octo_exp.nn.layers import QuantConv2d, QuantLinear
from octo_exp.quant.forms import Hindsight
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme, apply_override
from tests.nn.helpers import scheme


def net() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 4, 3),
            relu=nn.ReLU(),
            conv2=nn.Conv2d(4, 4, 3),
            flat=nn.Flatten(),
            fc1=nn.Linear(64, 8),
            fc2=nn.Linear(8, 3),
        )
    )


def with_skip(name: str, *skip: str, **changes) -> Scheme:
    return scheme(name, skip=f"[{','.join(skip)}]", **changes)


def converted(model: nn.Module, built: Scheme, **options) -> tuple[str, ...]:
    return convert(model, built, impl="torch", clock=Clock(), **options).quantized


def test_first_and_last_stay_float_by_default_and_parameters_are_the_same_objects():
    model = net()
    weight = model.conv2.weight
    assert converted(model, with_skip("int8", "first", "last")) == ("conv2", "fc1")
    # In fp32, with the ReLU behind it.
    assert type(model.conv1) is FloatConv2d
    assert type(model.fc2) is FloatLinear
    assert isinstance(model.conv2, QuantConv2d)
    assert isinstance(model.fc1, QuantLinear)
    assert model.conv2.weight is weight
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_names_and_patterns_are_skipped():
    model = net()
    assert converted(model, with_skip("int8", "conv2", "fc*")) == ("conv1",)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_float_schemes_convert_nothing(name):
    assert converted(net(), scheme(name)) == ()


def test_a_shared_layer_is_swapped_under_every_name():
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), relu=nn.ReLU(), b=nn.Linear(4, 4)))
    model.b = model.a
    assert converted(model, with_skip("int8")) == ("a",)
    assert model.a is model.b
    assert isinstance(model.b, QuantLinear)


def test_a_single_layer_is_refused():
    with pytest.raises(ValueError, match=r"nn\.Sequential"):
        converted(nn.Linear(2, 2), with_skip("int8"))


def test_a_scheme_that_matches_nothing_raises():
    with pytest.raises(UserError, match="matches no layer"):
        converted(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), with_skip("int8", "first", "last"))
    with pytest.raises(UserError, match="matches no layer"):
        converted(net(), with_skip("int8", "*"))


def test_a_pattern_that_matches_nothing_raises_and_lists_the_layers():
    with pytest.raises(UserError, match=r"quant\.skip: 'features\.0' matches no layer; layers: conv1, conv2, fc1, fc2"):
        converted(net(), with_skip("int8", "features.0"))
    with pytest.raises(UserError, match=r"quant\.overrides: 'convs' matches no layer"):
        converted(net(), with_skip("int8", "first", overrides="{convs: {bits: 4}}"))


def test_overrides_change_what_they_name():
    model = net()
    overrides = "{conv2: {bits: 4, grad_weight: bf16}, *: {x: {range: hindsight}}}"
    converted(model, with_skip("octo", "first", overrides=overrides))
    assert model.conv2.scheme.x.bits == model.conv2.scheme.g.bits == 4
    assert model.conv2.scheme.bits == 4
    assert model.conv2.scheme.grad_weight == "bf16"
    assert model.conv2.scheme.x.range == model.fc1.scheme.x.range == Hindsight()
    assert model.fc2.scheme.x.bits == 8
    assert model.conv2.operand_bits == {"output": (4, 4), "grad_input": (4, 4), "grad_weight": (16, 16)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bit": 4}, "unknown key 'bit'"),
        ({"x": {"bit": 4}}, "no field 'bit'"),
        ({"clip": {"z": 1.0}}, "null in this scheme"),
        ({"bits": 12}, "bits .* got 12"),
        ({"output": "int4"}, "choose one of fp32, bf16, fake, int8"),
    ],
)
def test_bad_overrides_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        apply_override(scheme("int8"), "a.*", changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("int8", {"g": "null"}, "needs a quantiser for g"),
        ("int8", {"output": "int4"}, "quant.output='int4'"),
        ("int8", {"x__granularity": "channel"}, "output sums over input channels and taps"),
        ("int8", {"g__symmetric": "false"}, "symmetrically"),
        ("lac", {"x__symmetric": "true"}, "choose quant/compensation=affine"),
    ],
)
def test_schemes_that_could_not_run_as_they_say_are_refused(name, changes, message):
    with pytest.raises(Exception, match=message) as caught:
        scheme(name, **changes)
    assert isinstance(caught.value.__cause__ or caught.value, UserError)


def test_compensation_has_its_own_optimizer_group_without_decay():
    model = net()
    converted(model, with_skip("octo", "first", compensation__learning_rate=0.5))
    groups = parameter_groups(model)
    assert [group.get("lr") for group in groups] == [None, 0.5]
    assert groups[1]["weight_decay"] == 0.0
    counted = [id(p) for group in groups for p in group["params"]]
    assert sorted(counted) == sorted(id(p) for p in model.parameters())


def test_penalty_is_the_affine_forms_and_none_otherwise():
    model = net()
    converted(model, with_skip("lac", "first"))
    assert compensation_penalty(model) is None
    model = net()
    converted(model, with_skip("lac", "first", compensation="affine"))
    total = sum(layer.compensator.penalty() for layer in (model.conv2, model.fc1, model.fc2))
    assert torch.allclose(compensation_penalty(model), total)


def test_element_granularity_needs_the_input_shape():
    built = with_skip("lac", "first", compensation__granularity="element")
    with pytest.raises(UserError, match="input shape"):
        converted(net(), built)
    model = net()
    converted(model, built, input_shape=(1, 8, 8))
    assert model.conv2.compensator.theta.shape == (4, 4, 4)
    assert model.fc1.compensator.theta.shape == (8,)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
