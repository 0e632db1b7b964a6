"""format=text: written, read back, computed from its files; the layout as its docstring has it."""

import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.exports.formats import text
from octo_exp.exports.formats.text import write_text
from octo_exp.exports.text import run_numpy
from octo_exp.exports.text.grammar import rows_of
from octo_exp.exports.text.read import read_text
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.integers.bounds import within_int32
from octo_exp.graph.spec import ConvSpec, Image, InputSpec, ModelSpec
from tests.exports.helpers import exported
from tests.exports.text_helpers import FakeGraph, contents, odd_model, quantized, random_codes
from tests.graph.helpers import model_file, pool_spec, same, tiny_model, tiny_resnet
from tests.graph.random_models import random_model

MODELS = ("mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3")


def smallest() -> ModelSpec:
    """A convolution, a pool, a classifier, with round numbers."""
    scales = {"x_zero": -3, "y_zero": 7, "x_scale": 0.5, "y_scale": 4.0}
    conv = {"in_channels": 1, "kernel_size": (1, 1), "stride": 1, "padding": (0, 0), "groups": 1, "depthwise": False}
    first = ConvSpec(
        out_channels=2,
        in_size=2,
        out_size=2,
        weight=np.array([-128, 127], np.int8).reshape(2, 1, 1, 1),
        bias=np.array([-5, 2**20], np.int32),
        w_scales=np.array([0.25, 0.1], np.float32),
        **conv,
        **scales,
    )
    classifier = ConvSpec(
        **conv | {"in_channels": 2, "kernel_size": (1, 1)},
        out_channels=3,
        in_size=1,
        out_size=1,
        weight=np.arange(-3, 3, dtype=np.int8).reshape(3, 2, 1, 1),
        bias=np.zeros(3, np.int32),
        w_scales=np.ones(3, np.float32),
        x_scale=4.0,
        x_zero=7,
        y_scale=16.0,
        y_zero=0,
    )
    pool = pool_spec(Image(2, 2, 4.0, 7), "average", 2, 2)
    return ModelSpec(input=InputSpec(scale=0.5, zero=-3), layers=(first, pool), classifier=classifier)


def test_the_files_are_as_the_docstring_says(tmp_path):
    write_text(smallest(), tmp_path)
    files = {name: lines.split("\n", 1) for name, lines in contents(tmp_path).items()}
    assert all(header.startswith("# ") for header, _ in files.values())
    assert {name: data for name, (_, data) in files.items()} == {
        "graph.txt": "format version=1\n"
        "input name=input channels=1 size=2 scale=0.5 zero=-3\n"
        "conv name=layer0 from=input in_channels=1 out_channels=2 in_size=2 out_size=2 kernel_height=1 kernel_width=1 "
        "stride=1 padding_height=0 padding_width=0 groups=1 depthwise=0\n"
        "average_pool name=layer1 from=layer0 channels=2 in_size=2 out_size=1 kernel=2 stride=2 padding=0\n"
        "conv name=classifier from=layer1 in_channels=2 out_channels=3 in_size=1 out_size=1 kernel_height=1 "
        "kernel_width=1 stride=1 padding_height=0 padding_width=0 groups=1 depthwise=0\n",
        "weight/layer0.weight.txt": "-128\n127\n",
        "weight/layer0.bias.txt": "-5\n1048576\n",
        # 0.5 * 0.25 / 4 = 2^-5 = 2^23 * 2^-28; 0.1f = 13421773 * 2^-27, an eighth of it has 2^-30.
        "weight/layer0_scale_zero.txt": "x_scale=0.5 x_zero=-3 y_scale=4.0 y_zero=7\n"
        "0.25 8388608 28\n"
        "0.10000000149011612 13421773 30\n",
        "weight/classifier.weight.txt": "-3 -2\n-1 0\n1 2\n",
        "weight/classifier.bias.txt": "0\n0\n0\n",
        "weight/classifier_scale_zero.txt": "x_scale=4.0 x_zero=7 y_scale=16.0 y_zero=0\n" + 3 * "1.0 8388608 25\n",
    }


def test_names_and_sources_of_blocks():
    steps = [(kind, *values[: 3 if kind == "add" else 2]) for kind, values in rows_of(tiny_resnet())[2:]]
    assert steps == [
        ("conv", "layer0", "input"),
        ("max_pool", "layer1", "layer0"),
        ("conv", "layer2.body0", "layer1"),
        ("conv", "layer2.body1", "layer2.body0"),
        ("add", "layer2.add", "layer2.body1", "layer1"),
        ("conv", "layer3.body0", "layer2.add"),
        ("conv", "layer3.body1", "layer3.body0"),
        ("conv", "layer3.shortcut0", "layer2.add"),
        ("add", "layer3.add", "layer3.body1", "layer3.shortcut0"),
        ("average_pool", "layer4", "layer3.add"),
        ("conv", "classifier", "layer4"),
    ]


def check(spec: ModelSpec, images: int = 3) -> None:
    """Written and read it is the same, and its files alone give the codes of the integer path."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(spec, folder)
        assert same(read_text(folder), spec)
        codes = random_codes(spec, images)
        made = run_numpy.classify(run_numpy.load(folder), codes.numpy())
    assert torch.equal(torch.from_numpy(made), FakeGraph(spec).net.classify(codes))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), build=st.sampled_from([random_model, odd_model, tiny_model, tiny_resnet]))
def test_random_graphs(seed, build):
    check(build(seed))


@pytest.mark.slow
@settings(max_examples=400)
@given(seed=st.integers(0, 2**32 - 1), build=st.sampled_from([random_model, odd_model, tiny_model, tiny_resnet]))
def test_many_random_graphs(seed, build):
    check(build(seed))


@given(scale=st.floats(1e-30, 1e30, allow_subnormal=False))
@settings(max_examples=100)
def test_any_scale_is_read_as_it_was(scale):
    assert float(repr(scale)) == scale
    step = text.pairs(("x_scale",), (np.float64(scale),))
    assert step == f"x_scale={scale!r}"


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mobilenet_v2", "grouped"])
def test_quantised_networks_are_exported(name, tmp_path):
    spec = quantized(name)
    facts = exported(text, FakeGraph(spec, images=12), tmp_path, "net")
    assert facts == {"images": 12}
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    assert same(read_text(tmp_path / "net"), spec)


@pytest.mark.parametrize(("macs", "images"), [(10**20, 10), (1, 33)])
def test_the_verification_is_bounded_by_work(macs, images, tmp_path, monkeypatch):
    spec = tiny_model()
    work = spec.macs + spec.classifier.macs
    monkeypatch.setattr(text, "VERIFY_MACS", 33 * work if macs == 1 else work)
    seen = []
    classify = run_numpy.classify
    monkeypatch.setattr(run_numpy, "classify", lambda net, x: seen.append(len(x)) or classify(net, x))
    assert exported(text, FakeGraph(spec), tmp_path, "net") == {"images": images}
    assert sum(seen) == images


def test_at_most_a_thousand_images(tmp_path):
    assert exported(text, FakeGraph(smallest(), images=1030, batch=400), tmp_path, "net") == {"images": 1000}


def test_another_graph_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "read_text", lambda folder: tiny_model(seed=1))
    with pytest.raises(UserError, match="net does not verify: read back, it is another graph"):
        exported(text, FakeGraph(tiny_model()), tmp_path, "net")


@pytest.mark.parametrize("image", [0, 39])
def test_other_logits_are_refused(image, tmp_path, monkeypatch):
    classify, seen = run_numpy.classify, []

    def shaken(net, x):
        codes = classify(net, x)
        if sum(seen) <= image < sum(seen) + len(x):
            codes[image - sum(seen), -1] ^= 1
        seen.append(len(x))
        return codes

    monkeypatch.setattr(run_numpy, "classify", shaken)
    with pytest.raises(UserError, match="net does not verify: 1 of 40 images have other logits"):
        exported(text, FakeGraph(tiny_model()), tmp_path, "net")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_released_models(name, tmp_path):
    spec = within_int32(read_model(model_file(name)))
    assert exported(text, FakeGraph(spec, images=20), tmp_path, name) == {"images": 20}
