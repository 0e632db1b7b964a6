"""format=c: every layer in C gives the graph's integers; what cannot be kept is refused in one line."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from octo_exp.base.errors import UserError
from octo_exp.exports.c99 import code, functions
from octo_exp.exports.c99.code import header_file, identifier
from octo_exp.exports.c99.verify import FLAGS, run
from octo_exp.exports.formats import c
from octo_exp.graph.calibrate import quantize_network
from octo_exp.graph.files.reader import read_model
from octo_exp.graph.integers import IntegerNet
from octo_exp.graph.spec import Image, InputSpec, ModelSpec
from tests.exports.c_helpers import SETTINGS, answers, random_codes, stand_in
from tests.exports.helpers import exported
from tests.graph.calibrate.helpers import shipped
from tests.graph.helpers import chain_of, conv_spec, model_file, pool_spec, tiny_model, tiny_resnet

# UBSan would not stop the program by itself.
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def chain(image: Image, *shapes: dict[str, int]) -> ModelSpec:
    """Convolutions one after another, a pool of 2 x 2 and the classifier."""
    rng = np.random.default_rng(7)
    convs = chain_of(rng, image, *({"depthwise": False} | shape for shape in shapes))
    pool = pool_spec(convs[-1].gives, "average", 2, 1)
    last = convs[-1].gives._replace(size=pool.out_size)
    start = InputSpec(scale=image.scale, zero=image.zero)
    return ModelSpec(input=start, layers=(*convs, pool), classifier=conv_spec(rng, last, 5, last.size, padding=0))


# Channels of 1, 7, 16, 63, 65; a border at each side, none, and one wider than the kernel's half.
CHAINS = [
    chain(Image(1, 9, 0.02, -128), {"outputs": 7, "kernel": 3}, {"outputs": 7, "kernel": 3, "groups": 7}),
    chain(
        Image(16, 8, 0.02, 127), {"outputs": 16, "kernel": 3, "groups": 16, "stride": 2}, {"outputs": 65, "kernel": 1}
    ),
    chain(Image(65, 5, 0.02, 3), {"outputs": 65, "kernel": 5, "groups": 65}, {"outputs": 63, "kernel": 1, "stride": 2}),
    chain(Image(63, 6, 0.02, -5), {"outputs": 6, "kernel": 3, "groups": 3}, {"outputs": 12, "kernel": 1, "groups": 6}),
    chain(Image(4, 7, 0.02, 9), {"outputs": 8, "kernel": 3, "groups": 4, "padding": 2}, {"outputs": 3, "kernel": 2}),
    chain(Image(2, 8, 0.02, 0), {"outputs": 3, "kernel": 1, "padding": 1}, {"outputs": 5, "kernel": 3, "stride": 3}),
]


@pytest.mark.parametrize("spec", CHAINS, ids=range(len(CHAINS)))
def test_every_form_of_convolution(spec, tmp_path):
    net, codes = IntegerNet(spec), random_codes(spec, 32)
    assert torch.equal(answers(net, codes, tmp_path), net.classify(codes))


def with_kernel(kernel: tuple[int, int]) -> ModelSpec:
    """A convolution whose kernel is no square, and the classifier."""
    rng, image = np.random.default_rng(0), Image(3, 8, 0.02, -7)
    square = chain_of(rng, image, {"outputs": 4, "kernel": 3})[0]
    weight = rng.integers(-127, 128, (4, 3, *kernel)).astype(np.int8)
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = replace(square, kernel_size=kernel, padding=padding, weight=weight)
    start = InputSpec(scale=image.scale, zero=image.zero)
    return ModelSpec(input=start, layers=(conv,), classifier=conv_spec(rng, conv.gives, 5, 8, padding=0))


@pytest.mark.parametrize("kernel", [(1, 3), (5, 1), (5, 3)])
def test_kernels_that_are_no_squares(kernel, tmp_path):
    spec = with_kernel(kernel)
    net, codes = IntegerNet(spec), random_codes(spec, 32)
    assert torch.equal(answers(net, codes, tmp_path), net.classify(codes))


def at_the_end_of_int32() -> ModelSpec:
    """Sums that reach the last of int32, in a plain and in a depthwise layer."""
    spec = chain(Image(8, 6, 0.02, -128), {"outputs": 8, "kernel": 3}, {"outputs": 8, "kernel": 3, "groups": 8})
    convs = []
    for conv in spec.layers[:2]:
        most = 2**31 - 1 - 255 * np.abs(conv.weight.astype(np.int64)).reshape(8, -1).sum(1)
        bias = (most * np.where(np.arange(8) % 2, 1, -1)).astype(np.int32)
        convs.append(replace(conv, bias=bias, w_scales=(conv.w_scales * 2e-5).astype(np.float32)))
    return ModelSpec(input=spec.input, layers=(*convs, spec.layers[2]), classifier=spec.classifier)


def test_sums_at_the_end_of_int32(tmp_path):
    spec = at_the_end_of_int32()
    net, codes = IntegerNet(spec), random_codes(spec, 16)
    assert len(next(net.outputs(codes)).unique()) > 2
    assert torch.equal(answers(net, codes, tmp_path), net.classify(codes))


@pytest.mark.parametrize(("images", "verified"), [(7, 7), (130, 100)])
def test_export_of_a_graph(images, verified, tmp_path):
    graph = stand_in(tiny_resnet(), images=images, profile=SimpleNamespace(name="board", sram_kib=320.0))
    facts = exported(c, graph, tmp_path, "run")
    assert {path.name for path in tmp_path.iterdir()} == {"run.c", "run.h"}
    convs = (*graph.spec.convs, graph.spec.classifier)
    assert facts["images"] == verified
    assert facts["weight_bytes"] == sum(conv.weight.size + 9 * conv.out_channels for conv in convs)
    assert facts["sram_bytes"] == 320 * 1024
    assert (facts["input_bytes"], facts["logits_bytes"]) == (3 * 14 * 14, 4)
    header = (tmp_path / "run.h").read_text()
    macros = dict(re.findall(r"#define RUN_(\w+) \(?(.+?)\)?$", header, re.MULTILINE))
    start, last = graph.spec.input, graph.spec.classifier
    assert float(macros["INPUT_SCALE"]) == start.scale
    assert float(macros["LOGIT_SCALE"]) == last.y_scale
    assert (int(macros["INPUT_ZERO"]), int(macros["LOGIT_ZERO"])) == (start.zero, last.y_zero)
    assert (int(macros["INPUT_HEIGHT"]), int(macros["INPUT_WIDTH"]), int(macros["INPUT_CHANNELS"])) == (14, 14, 3)
    assert int(macros["ARENA_BYTES"]) == facts["arena_bytes"]


def test_the_file_needs_two_headers_and_no_float(tmp_path):
    exported(c, stand_in(tiny_resnet()), tmp_path, "run")
    text = re.sub(r"/\*.*?\*/", "", (tmp_path / "run.c").read_text(), flags=re.DOTALL)
    assert re.findall(r"#include (.+)", text) == ['"run.h"', "<string.h>"]
    assert not re.search(r"\b(float|double|malloc|calloc|free|printf)\b", text)
    assert set(re.findall(r"\b(\w+)\(", text)) & {"memcpy", "memset"}
    assert "layer3.shortcut0: convolution 1x1, stride 2, 7x7x6 -> 4x4x9, 864 MACs" in (tmp_path / "run.c").read_text()


def test_an_image_one_byte_too_large_for_the_sram_is_refused(tmp_path):
    facts = exported(c, stand_in(tiny_model()), tmp_path, "run")
    needed = facts["arena_bytes"] + facts["input_bytes"] + facts["logits_bytes"]
    board = SimpleNamespace(name="board", sram_kib=needed / 1024)
    assert exported(c, stand_in(tiny_model(), profile=board), tmp_path, "run")["sram_bytes"] == needed
    small = SimpleNamespace(name="board", sram_kib=(needed - 1) / 1024)
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        exported(c, stand_in(tiny_model(), profile=small), tmp_path / "none", "run")
    said = str(error.value)
    assert all(word in said for word in (f"{needed:,}", f"{needed - 1:,}", "hw=board", "layer2.body1", "use a smaller"))


def test_an_array_of_two_gib_is_refused(monkeypatch, tmp_path):
    spec = chain(Image(2, 3, 0.02, 0), {"outputs": 2, "kernel": 1})
    largest = spec.classifier.weight.size
    monkeypatch.setattr(c, "_LIMIT_BYTES", largest)
    exported(c, stand_in(spec, images=2), tmp_path, "run")
    monkeypatch.setattr(c, "_LIMIT_BYTES", largest - 1)
    with pytest.raises(UserError, match=f"and an array has {largest}; use a smaller network"):
        exported(c, stand_in(spec), tmp_path / "none", "run")


HOSTILE = [
    "2024-05-01_12-30",
    "r\u00e9sum\u00e9",
    'a"b\\',
    "int",
    "-O3",
    "a b",
    "__",
    "x\ny",
    "??)",
    "%s{}",
    "conv",
    "driver",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_compiles(name, tmp_path):
    facts = exported(c, stand_in(tiny_resnet(), images=2), tmp_path, name)
    assert facts["images"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.c", header_file(name)}
    assert re.fullmatch(r"[A-Za-z]\w*", identifier(name), re.ASCII)


def test_names_that_are_identifiers_stay():
    assert [identifier(name) for name in ("vgg11", "a_b", "3d", "_x", "")] == ["vgg11", "a_b", "net_3d", "x", "net"]


def test_no_compiler_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no cc or gcc; install one, or set CC"):
        exported(c, stand_in(tiny_resnet()), tmp_path, "run")
    monkeypatch.setenv("CC", "cc-of-nobody -m32")
    with pytest.raises(UserError, match="CC=cc-of-nobody -m32: there is no such compiler"):
        exported(c, stand_in(tiny_resnet()), tmp_path, "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kernel", "old", "new", "message"),
    [
        ("REQUANTIZE", "(shift - 1)", "(shift - 2)", "20 of 20 images have other logits"),
        ("AVERAGE_POOL", "mean % 2 == 1", "mean % 2 == 0", "images have other logits"),
        ("CONV", "int32_t sum = 0", "int32_t unused, sum = 0", "does not compile it .*unused"),
        ("CONV", "int32_t sum = 0", "int32_t *volatile none = NULL; int32_t sum = *none", "does not run"),
    ],
)
def test_what_does_not_verify_is_an_error(kernel, old, new, message, monkeypatch, tmp_path):
    text = getattr(functions, kernel)
    assert old in text
    monkeypatch.setattr(code.kernels, kernel, text.replace(old, new))
    with pytest.raises(UserError, match=message):
        exported(c, stand_in(tiny_resnet()), tmp_path, "run")


def test_a_program_that_fails_is_an_error(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nprintf ab\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(UserError, match="does not run to its end \\(exit code 3\\)"):
        run(program, torch.zeros(1, 1, 1, 1, dtype=torch.int8), 2)


def test_a_compiler_that_fails_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(UserError, match=r"run\.c does not verify: false does not compile it"):
        exported(c, stand_in(tiny_resnet()), tmp_path, "run")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mbv2-w0.35", "mcunet-5fps", "proxyless-w0.3"])
def test_released_models(model, tmp_path):
    assert exported(c, stand_in(read_model(model_file(model))), tmp_path, model)["images"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "alexnet_octo", "lenet5", "mobilenet_v2", "resnet18", "resnet20", "vgg11"])
def test_shipped_networks(name, tmp_path):
    net, images = shipped(name, "batch")
    spec = quantize_network(net, [images], **SETTINGS)
    assert exported(c, stand_in(spec), tmp_path, name)["images"] == 20


def sanitizes(folder: Path) -> bool:
    (folder / "probe.c").write_text("int main(void) { return 0; }\n")
    call = ["cc", *SANITIZERS, str(folder / "probe.c"), "-o", str(folder / "probe")]
    return subprocess.run(call, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*CHAINS, tiny_model(), tiny_resnet(), at_the_end_of_int32(), with_kernel((5, 3))])
def test_sanitizers_find_nothing(spec, tmp_path):
    if not sanitizes(tmp_path):
        pytest.skip("the compiler has no sanitizers")
    net, codes = IntegerNet(spec), random_codes(spec, 16)
    assert torch.equal(answers(net, codes, tmp_path, flags=(*FLAGS, *SANITIZERS)), net.classify(codes))
