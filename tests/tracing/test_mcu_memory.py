"""What a graph's workload says is in memory, against what autograd keeps and what the run holds."""

import pytest
import torch

from octo_exp.graph.files.reader import read_model
from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.graph.train.update.extra_memory import update_memory
from octo_exp.hw import step_memory
from octo_exp.runs.callbacks.kept_memory import SavedTensors
from octo_exp.tracing import OptimizerCost
from tests.graph.helpers import MODES, model_file, tiny_resnet
from tests.graph.update.test_configs import rule_of
from tests.tracing.helpers import roles
from tests.tracing.mcu_helpers import freeze, kept_by_step, priced, saved_by_step, tiny

# A graph rounds bits up to bytes once a tensor or once an image.
ROUNDED = 8
UPDATES = {
    "full": {},
    "head": {"n_bias": 0},
    "biases": {"n_weight": 0},
    "last": {"n_bias": 4, "n_weight": 2},
    "some": {"weight_idx": [1, 3, 4, 5, 8], "ratio": [0.5, 1, 0.3, 0.01, 0.7]},
}
MOMENTUM = OptimizerCost(operations=2, state_bytes=4)


def same_bytes(net, **options):
    said, saved = kept_by_step(priced(net, **options)), saved_by_step(net, **options)
    assert len(said) == len(saved)
    assert all(abs(a - b) <= ROUNDED for a, b in zip(said, saved, strict=True))
    return said


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("head", ["fp", "quantized"])
def test_kept_is_what_autograd_saves_step_by_step(mode, update, head):
    net = tiny(mode=mode, head=head, **UPDATES[update])
    assert same_bytes(net)
    same_bytes(net, batch_size=7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("update", ["full", "head", "biases", "last"])
def test_kept_of_pools_and_of_blocks_with_shortcuts(mode, update):
    net = tiny(spec=tiny_resnet(), mode=mode, **UPDATES[update])
    kept = same_bytes(net, side=14)
    (pool,) = (name for name, module in net.named_modules() if getattr(module, "step", None) and "max" in repr(module))
    places = {b.bytes for b in priced(net, side=14).buffers if b.layer == pool and b.kept}
    # Where a gradient passes a max pool, a byte for each of its outputs.
    assert places == ({3 * 6 * 49} if update in ("full", "biases") else set())
    assert len(kept) == {"full": 10, "head": 1, "biases": 10, "last": 7}[update]


@pytest.mark.parametrize("mode", MODES)
def test_kept_around_a_frozen_block_and_of_frozen_weights(mode):
    same_bytes(freeze(tiny(mode=mode), 3, 4, 5))
    net = tiny(mode=mode, quantize_gradient=True)
    net.convs[4].weight.requires_grad_(False)
    same_bytes(net)


@pytest.mark.data
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", ["mcunet-5fps", "mbv2-w0.35"])
@pytest.mark.parametrize("update", ["full", "head_only", "99kb"])
def test_kept_of_released_models(model, update, mode):
    net = tiny(spec=read_model(model_file(model)), classes=10, mode=mode)
    rule_of(
        {"mcunet-5fps": "mcunet_5fps_", "mbv2-w0.35": "mbv2_w035_"}[model] + update if "kb" in update else update
    ).apply(net)
    same_bytes(net, batch_size=2, side=128)


@pytest.mark.data
@pytest.mark.parametrize("update", ["mcunet_5fps_49kb", "mcunet_5fps_99kb", "full", "bias_only"])
def test_kept_is_the_account_of_the_update_and_what_it_leaves_out(update):
    net, chosen = tiny(spec=read_model(model_file("mcunet-5fps")), classes=10), rule_of(update)
    chosen.apply(net)
    shapes = [LayerShape.of(conv) for conv in net.convs]
    account = update_memory(shapes, chosen.sparse.rules(shapes), head_inputs=160)
    report = step_memory(priced(net, batch_size=1, side=128).buffers)
    names = {name for name, module in net.named_modules() if module in net.convs}
    of_convs = {name: size for name, size in report.kept_by_layer.items() if name in names}
    # Layers of no whole byte of bits are rounded up.
    assert sum(of_convs.values()) == sum(-(-a.clamp_bits // 8) + a.input_bits // 8 for a in account.layers)
    # Besides: bits of additions, and the head's input in float, 4 bytes for the account's one.
    assert report.kept_by_layer["head.linear"] == 4 * account.head_bits // 8
    assert set(report.kept_by_layer) - names - {"head.linear"}


@pytest.mark.parametrize("mode", MODES)
def test_kept_in_total_is_what_the_callback_counts(mode):
    net = tiny(mode=mode, n_bias=6, n_weight=4)
    with SavedTensors(net) as saved:
        net(torch.zeros(8, 3, 16, 16))
    assert step_memory(priced(net, batch_size=8).buffers).kept_bytes == sum(saved.bytes_by_layer.values())


def buffers_of(workload, layer):
    found = [(b.kind, b.bytes, b.first, b.last) for b in workload.buffers if b.layer == layer and b.kind != "weight"]
    return sorted(found)


def test_every_buffer_of_a_convolution_and_its_life():
    # Events: batch 0, its codes 1, convolutions 2 to 7, addition 8, convolutions 9 to 11, pool 12, head 13 and 14;
    # their backward passes 29 - event, the update 30. Convolution 1 is depthwise: 8 channels, 3x3, 8x8 images.
    workload, image, batch = priced(tiny()), 8 * 64, 3 * 8 * 64
    first, second = list(roles(workload))[:2]
    assert buffers_of(workload, second) == sorted(
        [
            # The codes that convolution 0 made, the bits of its own.
            ("activation", batch, 2, 26),
            ("mask", batch // 8, 3, 26),
            # Of its output, made when convolution 2 goes back, and of its parameters.
            ("gradient", 4 * batch, 25, 26),
            ("gradient", 4 * (8 * 9 + 8), 26, 30),
            # Codes of the weight, and sums of an image; backward floats of each: gradient, weight, input.
            ("workspace", 8 * 9, 3, 3),
            ("workspace", 4 * image, 3, 3),
            ("workspace", 4 * image, 26, 26),
            ("workspace", 4 * 8 * 9, 26, 26),
            ("workspace", 4 * image, 26, 26),
        ]
    )
    assert ("activation", 3 * 3 * 256, 1, 27) in buffers_of(workload, first)
    assert buffers_of(workload, "input") == [("workspace", 4 * 3 * 3 * 256, 0, 29)]
    assert buffers_of(workload, "head.linear") == sorted(
        [
            ("activation", 4 * 3 * 10, 13, 15),
            # The logits, and their gradient.
            ("workspace", 4 * 3 * 5, 14, 14),
            ("gradient", 4 * 3 * 5, 15, 15),
            ("gradient", 4 * (10 * 5 + 5), 15, 30),
        ]
    )


def test_what_nobody_keeps_is_free_after_its_last_use():
    # The block's input, 6 channels, lives until the addition; the pool's images, 10 channels, until the head.
    workload = priced(tiny(n_bias=0))
    held = [(b.bytes, b.first, b.last) for b in workload.buffers if b.kind == "workspace"]
    assert (3 * 6 * 64, 4, 8) in held
    assert (3 * 10, 12, 13) in held
    assert not any(b.kind == "gradient" and b.layer != "head.linear" for b in workload.buffers)


def test_float_order_holds_a_batch_of_floats():
    workload = priced(tiny(mode="float_order"))
    second = list(roles(workload))[1]
    found = buffers_of(workload, second)
    batch = 3 * 8 * 64
    # The copy in int8; weights as whole numbers, forward and backward; gradient and codes of the whole batch.
    assert [b for b in found if b[0] == "activation"] == [("activation", batch, 3, 26)]
    assert [b for b in found if b[0] == "workspace"] == sorted(
        [
            ("workspace", 4 * batch, 3, 4),
            ("workspace", 4 * 8 * 9, 3, 3),
            ("workspace", 4 * 8 * 9, 26, 26),
            ("workspace", 4 * batch, 26, 26),
            ("workspace", 4 * batch, 26, 26),
        ]
    )


def test_a_head_whose_weight_is_frozen_keeps_nothing():
    net = tiny()
    net.head.linear.weight.requires_grad_(False)
    assert "head.linear" not in step_memory(priced(net).buffers).kept_by_layer
    same_bytes(net)


def of_kind(workload, kind):
    return [buffer for buffer in workload.buffers if buffer.kind == kind]


def test_weights_are_all_that_the_net_owns():
    net = tiny(n_bias=0)
    held = of_kind(priced(net), "weight")
    assert sum(b.bytes for b in held) == sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    last = max(b.last for b in priced(net).buffers)
    assert {(b.first, b.last) for b in held} == {(0, last)}


@pytest.mark.parametrize(("ratio", "pointwise", "depthwise"), [(1, 6, 16), (0.5, 3, 8)])
def test_gradients_and_state_are_those_of_trained_values(ratio, pointwise, depthwise):
    net = tiny(n_bias=6, weight_idx=[3, 4], ratio=ratio)
    workload = priced(net, optimizer=MOMENTUM)
    # Weights of the two, their biases and those of the four after them, and the float head.
    trained = pointwise * 16 + depthwise * 25 + (16 + 16 + 6) + (16 + 16 + 10) + (10 * 5 + 5)
    last = max(b.last for b in workload.buffers)
    gradients = [b for b in of_kind(workload, "gradient") if b.last == last]
    assert sum(b.bytes for b in gradients) == 4 * trained
    assert sum(b.bytes for b in of_kind(workload, "optimizer")) == 4 * trained
    assert not of_kind(priced(net), "optimizer")


def test_memory_falls_with_what_is_trained():
    reports = [
        step_memory(priced(tiny(**update), batch_size=8).buffers) for update in ({}, {"n_weight": 0}, {"n_bias": 0})
    ]
    assert reports[0].peak_bytes > reports[1].peak_bytes > reports[2].peak_bytes
    assert reports[0].kept_bytes > reports[1].kept_bytes > reports[2].kept_bytes
