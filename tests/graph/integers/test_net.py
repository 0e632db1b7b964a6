"""An int8 graph in integers alone: compiled loops and plain forms, and what other arithmetics make of it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from octo_exp.base.errors import UserError
from octo_exp.graph.integers import IntegerNet, integer_net
from octo_exp.graph.spec import ConvSpec, Image, InputSpec, ModelSpec
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.kernels.cpu import fixed_loops
from tests.graph.helpers import conv_spec, pool_spec
from tests.graph.random_models import random_model


def codes_for(spec: ModelSpec, n: int = 3, seed: int = 0) -> torch.Tensor:
    image, generator = spec.image, torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (n, image.channels, image.size, image.size), generator=generator, dtype=torch.int8)


def classifier_of(rng: np.random.Generator, image: Image) -> ConvSpec:
    return conv_spec(rng, image, 4, image.size, padding=0)


def one_layer(seed: int, channels: int, size: int, *shape: int, **options: int) -> ModelSpec:
    """A convolution and a classifier."""
    rng = np.random.default_rng(seed)
    image = Image(channels, size, 0.03, int(rng.integers(-128, 128)))
    layer = conv_spec(rng, image, *shape, **options)
    start = InputSpec(scale=image.scale, zero=image.zero)
    return ModelSpec(input=start, layers=(layer,), classifier=classifier_of(rng, layer.gives))


def check_forms(spec: ModelSpec, codes: torch.Tensor) -> None:
    integers = IntegerNet(spec)
    compiled = list(integers.outputs(codes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer_net, "_has_loops", lambda codes: False)
        expected = list(integers.outputs(codes))
    for ours, theirs in zip(compiled, expected, strict=True):
        assert ours.dtype == theirs.dtype == torch.int8
        assert torch.equal(ours, theirs)


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_compiled_loops_give_the_plain_forms_codes(seed):
    spec = random_model(seed)
    check_forms(spec, codes_for(spec, seed=seed))


@pytest.mark.parametrize("channels", [1, 7, 16, 63, 65])
@pytest.mark.parametrize("groups", ["one", "all"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 2, 0), (2, 2, 1)])
def test_convolutions_of_any_size(channels, groups, kernel, stride, padding):
    options = {"stride": stride, "padding": padding, "groups": channels if groups == "all" else 1}
    outputs = channels if groups == "all" else 17
    spec = one_layer(channels, channels, 9, outputs, kernel, **options, depthwise=groups == "all" and channels > 1)
    check_forms(spec, codes_for(spec))


@pytest.mark.parametrize(("groups", "outputs"), [(2, 8), (3, 6), (6, 12)])
def test_grouped_convolutions(groups, outputs):
    spec = one_layer(groups, 6, 8, outputs, 3, groups=groups, depthwise=False)
    check_forms(spec, codes_for(spec))


@pytest.mark.parametrize("images", [1, 7, 40])
def test_images_are_taken_some_at_a_time(images):
    """Sums of 40 images of 64 x 32 x 32 are 20 times what exists at once."""
    spec = one_layer(3, 3, 32, 64, 3)
    integers, codes = IntegerNet(spec), codes_for(spec, images)
    whole = integers.classify(codes)
    assert torch.equal(whole, torch.cat([integers.classify(part) for part in codes.split(1)]))


def test_the_number_of_threads_changes_nothing():
    spec, threads = random_model(5), torch.get_num_threads()
    integers, codes = IntegerNet(spec), codes_for(spec, 7)
    try:
        torch.set_num_threads(1)
        one = integers.classify(codes)
        torch.set_num_threads(2)
        assert torch.equal(one, integers.classify(codes))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (4, 3, 0), (6, 1, 0)])
def test_pools(kind, kernel, stride, padding):
    rng = np.random.default_rng(0)
    image = Image(5, 13, 0.1, 3)
    conv = conv_spec(rng, image, 7, 3)
    pool = pool_spec(conv.gives, kind, kernel, stride, padding if kind == "max" else 0)
    last = conv.gives._replace(size=pool.out_size)
    start = InputSpec(scale=image.scale, zero=image.zero)
    spec = ModelSpec(input=start, layers=(conv, pool), classifier=classifier_of(rng, last))
    codes = codes_for(spec)
    check_forms(spec, codes)
    # A pool is the same in every arithmetic.
    first, pooled, _ = IntegerNet(spec).outputs(codes)
    modules = McuNet.with_classifier(spec, mode="float_order").layers
    assert torch.equal(pooled.float(), modules[1](first.float()))


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_a_layer_is_at_most_a_code_from_the_released_arithmetic(seed):
    """On equal inputs: halves and the last bit of a float32 product are all that differs."""
    spec = random_model(seed)
    integers, released = IntegerNet(spec), McuNet.with_classifier(spec, mode="float_order")
    codes = codes_for(spec, seed=seed)
    for layer, theirs in zip(integers.layers, released.layers, strict=True):
        for ours, other in zip(_convs(layer), _convs(theirs), strict=True):
            given_codes = torch.randint(-128, 128, (3, other.in_channels, *other.in_size), dtype=torch.int8)
            off = ours(given_codes).int() - other(given_codes.float()).int()
            assert off.abs().max() <= 1
            assert (off != 0).float().mean() <= 0.01
        made = layer(codes)
        # An addition gets inputs that may be one apart, which its factors can make two.
        assert (made.int() - theirs(codes.float()).int()).abs().max() <= 3
        codes = made


def _convs(layer: torch.nn.Module) -> list[torch.nn.Module]:
    return [m for m in layer.modules() if type(m).__name__ in ("IntegerConv", "McuConv2d")]


class _DtypeWatch(TorchDispatchMode):
    """Notes every type of number that an operation takes or makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in (*args, made):
            if isinstance(value, torch.Tensor):
                self.seen.add(value.dtype)
        return made


@pytest.mark.parametrize("forms", ["compiled", "plain"])
@pytest.mark.parametrize("seed", range(4))
def test_no_float_between_the_codes_of_the_image_and_those_of_the_logits(forms, seed, monkeypatch):
    spec = random_model(seed)
    integers, codes = IntegerNet(spec), codes_for(spec)
    if forms == "plain":
        monkeypatch.setattr(integer_net, "_has_loops", lambda codes: False)
        exact = SimpleNamespace(int8_conv2d=_int_conv)
        monkeypatch.setattr(integer_net.ops, "backend", lambda impl, device_type: exact)
    with _DtypeWatch() as watch:
        integers.classify(codes)
    assert watch.seen
    assert not [t for t in watch.seen if t.is_floating_point or t.is_complex]


def _int_conv(codes, weight, geometry, *, pad_value):
    """Exact sums in int64: the kernels' own reference uses float64 for what it proves."""
    p = geometry.padding
    x = torch.nn.functional.pad(codes, (p[1], p[1], p[0], p[0]), value=pad_value).long()
    kh, kw = weight.shape[2:]
    windows = x.unfold(2, kh, geometry.stride[0]).unfold(3, kw, geometry.stride[1])
    n, _, oh, ow = windows.shape[:4]
    windows = windows.reshape(n, geometry.groups, -1, oh, ow, kh * kw).permute(0, 1, 3, 4, 2, 5).flatten(4)
    rows = weight.long().reshape(geometry.groups, -1, windows.shape[4])
    sums = (windows.unsqueeze(4) * rows.reshape(1, geometry.groups, 1, 1, *rows.shape[1:])).sum(5)
    return sums.permute(0, 1, 4, 2, 3).reshape(n, -1, oh, ow).to(torch.int32)


def test_compiled_loops_know_no_float():
    spec = random_model(1)
    IntegerNet(spec).classify(codes_for(spec))
    # Images are float: what makes codes of them stands apart.
    loops = {name: f for name, f in vars(fixed_loops).items() if name != "codes_of_images"}
    compiled = [f for f in loops.values() if hasattr(f, "signatures")]
    assert len(compiled) >= 6
    arguments = [str(argument) for f in compiled for signature in f.signatures for argument in signature]
    assert arguments
    assert not [a for a in arguments if "float" in a]
    # Nor do they make one, as a division of integers would.
    made = [str(overload.type_annotation) for f in compiled for overload in f.overloads.values()]
    assert any("int64" in text for text in made)
    assert not [text for text in made if "float" in text.replace("error_model", "")]


def test_the_state_is_integers():
    state = {k: v for k, v in IntegerNet(random_model(2)).state_dict().items() if not k.startswith("input.")}
    assert state
    assert not [k for k, v in state.items() if v.is_floating_point()]


def test_float_images_give_logits_of_the_classifiers_scale():
    spec = random_model(3)
    integers, image = IntegerNet(spec), spec.image
    x = (codes_for(spec).float() - image.zero) * image.scale
    assert torch.equal(integers.codes_of(x), codes_for(spec))
    expected = (integers.classify(codes_for(spec)).float() - spec.classifier.y_zero) * spec.classifier.y_scale
    assert torch.equal(integers(x), expected)


def with_bias(bias: int, *, w_scale: float) -> ModelSpec:
    """One convolution with a channel of such a bias and weight scale, and a classifier."""
    spec = one_layer(0, 4, 8, 4, 3)
    (conv,) = spec.layers
    biases, scales = conv.bias.copy(), conv.w_scales.copy()
    biases[1], scales[1] = bias, w_scale
    return replace(spec, layers=(replace(conv, bias=biases, w_scales=scales),))


@pytest.mark.parametrize("bias", [-(2**31), 2**31 - 1])
def test_the_bias_of_a_dead_channel_is_pulled_in(bias):
    """The output is what exact arithmetic on the file's own bias gives, or the next code."""
    spec = with_bias(bias, w_scale=4e-9)
    integers, codes = IntegerNet(spec), codes_for(spec, 9)
    conv, run = spec.layers[0], integers.spec.layers[0]
    room = 2**31 - 1 - 255 * np.abs(conv.weight[1].astype(np.int64)).sum()
    assert abs(int(run.bias[1])) == room
    assert np.array_equal(np.delete(run.bias, 1), np.delete(conv.bias, 1))
    released = McuNet.with_classifier(spec, mode="float_order")
    ours, theirs = integers.layers[0](codes).int(), released.layers[0](codes.float()).int()
    assert (ours - theirs).abs().max() <= 1
    assert (ours[:, 1] == theirs[:, 1]).float().mean() > 0.9


@pytest.mark.parametrize("bias", [-(2**31), 2**31 - 1])
def test_sums_that_leave_int32_are_refused(bias):
    with pytest.raises(UserError, match=r"layer 0: its sums can leave int32 \(2,148,"):
        IntegerNet(with_bias(bias, w_scale=0.01))


@pytest.mark.parametrize("wrong", [torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3, dtype=torch.int8)])
def test_other_images_are_refused(wrong):
    with pytest.raises(UserError, match="input must be int8 codes"):
        IntegerNet(one_layer(0, 3, 8, 4, 3)).classify(wrong)


@pytest.mark.parametrize("images", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_images_of_any_type_are_what_they_are_in_float32(images, dtype):
    integers = IntegerNet(one_layer(0, 3, 8, 4, 3))
    x = (4 * torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert torch.equal(integers.codes_of(x), integers.codes_of(x.float()))
    assert torch.equal(integers(x), integers(x.float()))
    assert integers(x).dtype == torch.float32


def test_no_images_are_refused():
    integers = IntegerNet(one_layer(0, 3, 8, 4, 3))
    with pytest.raises(UserError, match=r"input must be images \[N >= 1, 3, 8, 8\], got torch.float32 \[0, 3, 8, 8\]"):
        integers(torch.zeros(0, 3, 8, 8))
    with pytest.raises(UserError, match="input must be int8 codes"):
        integers.classify(torch.zeros(0, 3, 8, 8, dtype=torch.int8))
