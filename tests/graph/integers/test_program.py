"""A graph as one compiled call: the plain forms' answers, for the images and the graphs that it is meant for."""

import numpy as np
import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.graph.integers import IntegerNet, integer_net, program
from octo_exp.graph.operations import steps_of
from octo_exp.graph.spec import InputSpec, ModelSpec
from octo_exp.kernels.cpu import few_rows
from tests.graph.helpers import conv_spec, tiny_model, tiny_resnet
from tests.graph.integers.test_net import classifier_of, codes_for, one_layer
from tests.graph.random_models import random_model

HAS_IT = pytest.mark.skipif(not few_rows.is_available(), reason="this CPU has no AVX-512 VNNI")


def images_for(spec: ModelSpec, n: int) -> torch.Tensor:
    codes = codes_for(spec, n).float()
    return codes if spec.input.is_codes else (codes - spec.image.zero) * spec.image.scale


def check(integers: IntegerNet, x: torch.Tensor) -> torch.Tensor:
    """The answers, equal to those of the plain forms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer_net, "_has_loops", lambda codes: False)
        expected = integers(x)
    assert torch.equal(integers(x), expected)
    return expected


@HAS_IT
@pytest.mark.parametrize("images", [1, 7, 8])
@pytest.mark.parametrize("spec", [tiny_model(), tiny_resnet(), *(random_model(seed) for seed in range(12))])
def test_graphs_of_any_layout(spec, images):
    integers = IntegerNet(spec)
    assert len(check(integers, images_for(spec, images)).unique()) > 1
    assert integers._program is not None


@HAS_IT
@pytest.mark.parametrize("size", [1, 7, 16, 63, 65])
@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 2, 1), (5, 2, 0), (2, 1, 1)])
def test_convolutions_of_any_size(size, depthwise, kernel, stride, padding):
    shape = (size if depthwise else 33, kernel)
    spec = one_layer(size, size, 9, *shape, stride=stride, padding=padding, groups=size if depthwise else 1)
    integers = IntegerNet(spec)
    check(integers, images_for(spec, 2))
    assert integers._program is not None


@HAS_IT
def test_images_in_any_order_of_memory():
    spec = tiny_resnet()
    x = images_for(spec, 4)
    expected = check(IntegerNet(spec), x)
    assert torch.equal(IntegerNet(spec)(x.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(IntegerNet(spec)(x.flip(0))[[3, 2, 1, 0]], expected)


@HAS_IT
@pytest.mark.parametrize("name", ["weight", "offset", "value", "shift"])
def test_changed_constants_are_seen(name):
    spec = one_layer(0, 3, 8, 4, 3)
    integers, x = IntegerNet(spec), images_for(spec, 2)
    before = check(integers, x)
    constant = getattr(integers.layers[0], name)
    constant.neg_() if name == "weight" else constant.add_(1 if name == "shift" else 2**15)
    assert not torch.equal(check(integers, x), before)
    integers.load_state_dict(IntegerNet(spec).state_dict(), assign=True)
    assert torch.equal(check(integers, x), before)


@HAS_IT
def test_up_to_how_many_images():
    spec = one_layer(0, 64, 16, 64, 3, padding=1)
    macs = 16 * 16 * 64 * 9 * 64
    assert max(step.macs for step in steps_of(spec)) == macs
    for limit, most in [(macs // 2 - 1, 0), (macs // 2, 1), (macs, 1), (3 * macs, 3), (99 * macs, 8)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(few_rows, "MAX_MACS", limit)
            integers = IntegerNet(spec)
            for images in sorted({most, most + 1} - {0}, reverse=True):
                assert integers._program is None
                check(integers, images_for(spec, images))
            assert (integers._program is None) == (most == 0)


def test_what_has_no_loop_goes_layer_by_layer(monkeypatch):
    rng = np.random.default_rng(0)
    image = random_model(0).image._replace(channels=4)
    grouped = conv_spec(rng, image, 8, 3, groups=4, depthwise=False)
    start = InputSpec(scale=image.scale, zero=image.zero)
    spec = ModelSpec(input=start, layers=(grouped,), classifier=classifier_of(rng, grouped.gives))
    assert program.most_images(steps_of(spec)) == 0
    check(IntegerNet(spec), images_for(spec, 1))
    monkeypatch.setattr(few_rows, "is_available", lambda: False)
    assert program.most_images(steps_of(tiny_resnet())) == 0
    check(IntegerNet(tiny_resnet()), images_for(tiny_resnet(), 1))


@pytest.mark.parametrize("images", [1, 20])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 127.5, -128.51])
def test_pixels_that_are_no_codes_are_refused(images, wrong):
    spec = tiny_model()
    assert spec.input.is_codes
    x = images_for(spec, images)
    x[-1, 2, 3, 4] = wrong
    with pytest.raises(UserError, match="input must be codes of -128 to 127"):
        IntegerNet(spec)(x)


@pytest.mark.parametrize("images", [1, 20])
def test_numbers_that_are_none_are_refused(images):
    spec = tiny_resnet()
    x = images_for(spec, images)
    x[0, 0, 0, 0] = -float("inf")
    check(IntegerNet(spec), x)
    x[-1, 2, 3, 4] = float("nan")
    with pytest.raises(UserError, match="input must be numbers"):
        IntegerNet(spec)(x)


@HAS_IT
def test_the_steps_know_no_float():
    integers, spec = IntegerNet(random_model(1)), random_model(1)
    integers(images_for(spec, 1))
    made = integers._program
    program.run(made.table, made.weights, made.constants, np.zeros(2**20, np.int8), 1)
    assert not [t for types in program.run.signatures for t in types if "float" in str(t)]
    texts = [str(overload.type_annotation) for overload in program.run.overloads.values()]
    assert any("int64" in text for text in texts)
    assert not [text for text in texts if "float" in text.replace("error_model", "")]
