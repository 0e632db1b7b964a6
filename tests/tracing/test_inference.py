"""What inference with an int8 graph costs, against counts by hand."""

import numpy as np
import pytest

from octo_exp.graph.integers.inference import ADD_OPS, FLOAT_OPS, REQUANTIZE_OPS, inference_workload
from octo_exp.graph.operations import last_reads, steps_of
from octo_exp.graph.spec import BlockSpec, Image, InputSpec, ModelSpec
from octo_exp.hw import step_memory
from octo_exp.workload import QUANTIZE_OPS
from tests.graph.helpers import chain_of, conv_spec, pool_spec, residual_spec


def small() -> ModelSpec:
    """3x8x8 -> conv 4x8x8 -> max pool 4x4x4 -> block (depthwise 4x4x4, pointwise 4x4x4) + itself -> 5 classes."""
    rng, image = np.random.default_rng(0), Image(3, 8, 0.03, 0)
    conv = conv_spec(rng, image, 4, 3)
    pool = pool_spec(conv.gives, "max", 2, 2)
    at = conv.gives._replace(size=4)
    body = chain_of(rng, at, {"outputs": 4, "kernel": 3, "groups": 4}, {"outputs": 4, "kernel": 1})
    add = residual_spec(at)
    after = Image(4, 4, add.y_scale, add.y_zero)
    classifier = conv_spec(rng, after, 5, 4, padding=0)
    layers = (conv, pool, BlockSpec(body=body, shortcut=(), residual=add))
    return ModelSpec(input=InputSpec(scale=0.03, zero=0), layers=layers, classifier=classifier)


def test_steps_have_names_and_read_what_they_need():
    steps = steps_of(small())
    names = ["layer0", "layer1", "layer2.body0", "layer2.body1", "layer2.add", "classifier"]
    assert [step.name for step in steps] == names
    reads = [("input",), ("layer0",), ("layer1",), ("layer2.body0",), ("layer1", "layer2.body1"), ("layer2.add",)]
    assert [step.reads for step in steps] == reads
    assert last_reads(steps) == {
        "input": 0, "layer0": 1, "layer1": 4, "layer2.body0": 3, "layer2.body1": 4, "layer2.add": 5
    }  # fmt: skip
    assert [step.gives[:2] for step in steps] == [(4, 8), (4, 4), (4, 4), (4, 4), (4, 4), (5, 1)]


@pytest.mark.parametrize("integers", [True, False])
def test_products_by_hand(integers):
    gemms = inference_workload(small(), integers=integers).gemms
    bits = 8 if integers else 32
    shapes = [(64, 4, 27, 1), (16, 1, 9, 4), (16, 4, 4, 1), (1, 5, 64, 1)]
    assert [(g.m, g.n, g.k, g.count) for g in gemms] == shapes
    assert [g.elements_a for g in gemms] == [192, 16, 64, 64]
    assert {(g.bits_a, g.bits_b, g.bits_out, g.role) for g in gemms} == {(bits, bits, bits, "output")}


def test_work_beside_the_products_by_hand():
    integers = inference_workload(small(), integers=True).vector
    found = [(w.layer, w.kind, w.operations, w.bytes_read, w.bytes_written) for w in integers]
    assert found == [
        ("layer0", "quantize", QUANTIZE_OPS * 192, 4 * 192, 192),
        ("layer0", "rescale", REQUANTIZE_OPS * 256, 0, 0),
        ("layer1", "pool", 4 * 64, 256, 64),
        ("layer2.body0", "rescale", REQUANTIZE_OPS * 64, 0, 0),
        ("layer2.body1", "rescale", REQUANTIZE_OPS * 64, 0, 0),
        ("layer2.add", "elementwise", ADD_OPS * 64, 128, 64),
        ("classifier", "rescale", REQUANTIZE_OPS * 5, 0, 0),
    ]
    floats = inference_workload(small(), integers=False).vector
    assert [w.kind for w in floats] == ["rescale", "pool", "rescale", "rescale", "elementwise", "rescale"]
    assert floats[4].operations == FLOAT_OPS * 64
    assert (floats[1].bytes_read, floats[1].bytes_written) == (1024, 256)


def test_memory_by_hand():
    """Each step's inputs and output; the block's input waits for the addition."""
    live = step_memory(inference_workload(small(), integers=True).buffers).live_bytes
    assert live == (192 + 256, 256 + 64, 64 + 64, 64 + 64 + 64, 64 + 64 + 64, 64 + 5)
    floats = step_memory(inference_workload(small(), integers=False).buffers).live_bytes
    assert floats == tuple(4 * size for size in live)
