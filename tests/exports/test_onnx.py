"""ONNX files: their form, exact pools, budgets of the verifier on real and random networks, and what it refuses."""

import sys
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from onnx import numpy_helper
from torch import nn

import octo_exp.exports.onnx
from octo_exp.base.errors import UserError
from octo_exp.exports.formats import onnx as qdq
from octo_exp.exports.onnx import model as onnx_build
from octo_exp.exports.onnx import runtime, verify
from octo_exp.exports.onnx.compare import Differences, compare_steps
from octo_exp.graph.calibrate import quantize_network
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.operations import INPUT, steps_of
from octo_exp.graph.spec import ConvSpec, Image, InputSpec, ModelSpec, PoolSpec, ResidualSpec
from tests.exports.helpers import exported
from tests.exports.onnx_helpers import SETTINGS, Residual, graph_of, graphs, images_of
from tests.graph.calibrate.helpers import settled, shipped
from tests.graph.helpers import conv_spec, model_file, pool_spec, tiny_model, tiny_resnet
from tests.graph.random_models import random_model

RELEASED = ("mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3")


def quantized(name, norm="batch"):
    net, images = shipped(name, norm, batch=64)
    return quantize_network(net, [images], **SETTINGS), images


@cache
def small():
    """A network with all that there is: both pools, depthwise, an addition, two linear layers."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), Residual(8, relu=True), nn.AvgPool2d(2)]
    body += [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6()]
    images = torch.randn(400, 3, 16, 16)
    net = settled(nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 5)), images)
    return quantize_network(net, [images], **SETTINGS), images


def differences(spec, images):
    return compare_steps(IntegerNet(spec), iter([images]))


def check_rate(found):
    total = sum(found, Differences())
    assert total.largest <= 1
    assert total.different <= np.ceil(verify.MAX_DIFFERENT * total.outputs)
    return total


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mobilenet_v2"])
def test_a_network_of_the_project(name, tmp_path):
    spec, images = quantized(name)
    facts = exported(qdq, graph_of(spec, images[:16]), tmp_path, "net")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    convs = (*spec.convs, spec.classifier)
    integer = facts["integer_operators"]
    assert integer["QLinearConv"] + integer["QGemm"] == len(convs)
    additions = sum(isinstance(step.part, ResidualSpec) for step in steps_of(spec))
    assert integer.get("QLinearAdd", 0) == additions
    assert facts["float_operators"] == {}
    assert facts["same_class_in_onnxruntime"] == 1
    assert facts["size_of_float32_parameters"] <= 0.3
    assert facts["step_outputs_one_code_off"] <= 1e-5 * facts["step_outputs_compared"]
    assert facts["step_outputs_compared"] > 100_000


def test_what_the_file_holds(tmp_path):
    spec, images = small()
    exported(qdq, graph_of(spec, images), tmp_path, "net")
    model = onnx.load(tmp_path / "net.onnx")
    assert (model.producer_name, model.producer_version) == ("octo-exp", octo_exp.__version__)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    for k, step in enumerate(steps_of(spec)):
        if not isinstance(step.part, ConvSpec):
            continue
        weight, bias, scales = (values[f"{letter}{k}"] for letter in "wbs")
        assert (weight.dtype, bias.dtype) == (np.int8, np.int32)
        assert np.array_equal(weight.reshape(-1), step.part.weight.reshape(-1))
        assert np.array_equal(bias, step.part.bias)
        assert np.array_equal(scales, step.part.w_scales)
        # Biases have the sums' scale, a product of the two constants that the operator's other inputs have.
        x, w, b = (made[name] for name in next(n for n in model.graph.node if n.name == step.name).input)
        sums = made[b.input[1]]
        assert (sums.op_type, list(sums.input)) == ("Mul", [x.input[1], w.input[1]])
        assert values[x.input[1]] == np.float32(step.part.x_scale)
    assert all(v.size == 1 or v.dtype != np.float32 or name.startswith("s") for name, v in values.items())
    named = [node.name for node in model.graph.node if node.name]
    assert named == [step.name for step in steps_of(spec)]


@pytest.mark.parametrize("count", [1, 7])
def test_any_number_of_images(count):
    spec = tiny_resnet()
    x = images_of(spec, count)
    running = runtime.session(onnx_build.build(spec).SerializeToString())
    logits = runtime.run(running, {"input": x.numpy()})["logits"]
    assert np.array_equal(logits, IntegerNet(spec)(x).numpy())


@pytest.mark.parametrize("zero", [-128, -7, 4])
@pytest.mark.parametrize(
    ("kind", "kernel"), [("average", k) for k in (1, 2, 3, 4, 6, 7, 14)] + [("max", 2), ("max", 3)]
)
def test_pools_are_exact_at_ties(kind, kernel, zero):
    rng = np.random.default_rng(kernel)
    image = Image(3, 2 * kernel, 0.0371, zero)
    pool = pool_spec(image, kind, kernel, kernel, kernel // 2 if kind == "max" else 0)
    given = image._replace(size=pool.out_size)
    middle = conv_spec(rng, given, 4, 1)
    last = conv_spec(rng, middle.gives, 5, pool.out_size, padding=0)
    start = InputSpec(scale=image.scale, zero=zero)
    spec = ModelSpec(input=start, layers=(pool, middle), classifier=last)
    # Codes close together, so that one mean in a few is a half.
    codes = rng.integers(-3, 4, (256, 3, image.size, image.size)) + rng.integers(-100, 100, (256, 3, 1, 1))
    found = differences(spec, torch.from_numpy((codes - zero) * np.float32(0.0371)).float())
    assert found[INPUT].different == found["layer0"].different == 0


def test_inputs_between_two_codes_go_to_the_even_one():
    spec = tiny_model()
    assert spec.input.is_codes
    halves = torch.arange(-128, 128).repeat(3).reshape(1, 3, 16, 16) - 0.5
    assert differences(spec, halves)[INPUT] == Differences(outputs=768)


@pytest.mark.parametrize("seed", range(8))
def test_graphs_of_any_layout(seed):
    spec = random_model(seed)
    found = differences(spec, images_of(spec, 64))
    assert max(one.largest for one in found.values()) <= 1
    # The scales of its additions are round multiples of another, and half of a code common.
    additions = [step.name for step in steps_of(spec) if isinstance(step.part, ResidualSpec)]
    check_rate(one for name, one in found.items() if name not in additions)


def rate_over(examples):
    found = []

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(graphs())
    def run(case):
        spec, images = case
        steps = differences(spec, images)
        found.extend(steps.values())
        assert max(one.largest for one in steps.values()) <= 1
        pools = [s.name for s in steps_of(spec) if isinstance(s.part, PoolSpec)]
        assert all(steps[name].different == 0 for name in pools)

    run()
    return check_rate(found)


def test_random_networks():
    assert rate_over(25).outputs > 100_000


@pytest.mark.slow
def test_many_random_networks():
    assert rate_over(200).outputs > 1_000_000


@pytest.mark.data
@pytest.mark.parametrize("name", RELEASED)
def test_the_bytes_of_released_models(name):
    spec = read_model(model_file(name))
    numbers = sum(step.params for step in steps_of(spec))
    assert len(onnx_build.build(spec).SerializeToString()) <= 0.3 * 4 * numbers


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", RELEASED)
def test_released_models(name, tmp_path):
    net = IntegerNet(read_model(model_file(name)))
    smooth = torch.nn.functional.interpolate(torch.randn(32, 3, 8, 8), net.spec.image.size, mode="bilinear")
    images = (50 * smooth).clamp(-127, 127)
    check_rate(compare_steps(net, images.split(4)).values())
    optimized = tmp_path / "optimized.onnx"
    running = runtime.session(onnx_build.build(net.spec).SerializeToString(), optimized)
    assert not set(runtime.operators(optimized)) & set(runtime.FLOAT)
    logits = torch.from_numpy(runtime.run(running, {"input": images.numpy()})["logits"])
    # Of 1000 classes two often have one code: the best may be another, but none that is far behind.
    ours = net(images)
    behind = ours.amax(1) - ours.gather(1, logits.argmax(1, keepdim=True))[:, 0]
    assert behind.max() <= 6.5 * net.logit_scale


def test_sums_are_exact_where_a_cpu_has_no_vnni(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert runtime.options().get_session_config_entry("session.x64quantprecision") == "1"
    spec, images = quantized("resnet20")
    check_rate(differences(spec, images[:16]).values())


def test_as_many_threads_as_torch():
    assert runtime.options().intra_op_num_threads == torch.get_num_threads()


def test_a_wrong_step_is_refused(monkeypatch, tmp_path):
    spec, images = small()
    real = onnx_build._Emitter.constant

    def constant(emitter, name, value):
        return real(emitter, name, value + np.int32(9) if name == "b0" else value)

    monkeypatch.setattr(onnx_build._Emitter, "constant", constant)
    with pytest.raises(UserError, match=r"does not verify in onnxruntime: .* outputs differ, in .* nothing is kept"):
        exported(qdq, graph_of(spec, images[:16]), tmp_path, "net")


def test_a_max_pool_that_is_not_exact_is_refused(monkeypatch, tmp_path):
    spec, images = small()
    real = verify.compare_steps
    planted = Differences(outputs=1, different=1, largest=1)
    monkeypatch.setattr(verify, "compare_steps", lambda *given: real(*given) | {"layer1": planted})
    with pytest.raises(UserError, match="layer1, a max pool, must be exact"):
        exported(qdq, graph_of(spec, images[:16]), tmp_path, "net")


def test_a_file_that_is_another_model_is_refused(tmp_path):
    spec, images = small()
    model = onnx_build.build(spec)
    weight = next(t for t in model.graph.initializer if t.name == "w0")
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(UserError, match=r"read back, .* another model"):
        verify.verify(graph_of(spec, images[:4]), tmp_path / "net.onnx")


@pytest.mark.parametrize(("answers", "message"), [("others", "get the integer path's class"), ("labels", "accuracy")])
def test_other_answers_are_refused(answers, message, monkeypatch, tmp_path):
    spec, images = small()
    graph = graph_of(spec, images, batch=400)
    model = onnx_build.build(spec)
    real = runtime.run

    def run(running, inputs):
        made = real(running, inputs)
        if "logits" in made:
            # Three, and two, of 400 images get a class that they had not.
            wrong = 3 if answers == "others" else 2
            made["logits"][:wrong] = -made["logits"][:wrong]
        return made

    onnx.save(model, tmp_path / "net.onnx")
    monkeypatch.setattr(runtime, "run", run)
    with pytest.raises(UserError, match=message):
        verify.verify(graph, tmp_path / "net.onnx")


def test_a_large_file_is_refused(monkeypatch, tmp_path):
    spec, images = small()
    monkeypatch.setattr(verify, "STEP_BYTES", 0)
    with pytest.raises(UserError, match=r"net.onnx is too large: .* of its float32 parameters"):
        exported(qdq, graph_of(spec, images[:4]), tmp_path, "net")


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(missing, monkeypatch, tmp_path):
    for name in ("model", "compare", "runtime", "verify"):
        monkeypatch.delitem(sys.modules, f"octo_exp.exports.onnx.{name}")
        monkeypatch.delattr(octo_exp.exports.onnx, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"needs {missing}, which is not installed; pip install 'octo-exp\[export\]'"):
        exported(qdq, graph_of(*small()), tmp_path, "net")
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_in_the_manifest(tmp_path):
    spec, images = small()
    facts = exported(qdq, graph_of(spec, images[:8]), tmp_path, "net")
    assert facts["onnxruntime"] == onnxruntime.__version__
