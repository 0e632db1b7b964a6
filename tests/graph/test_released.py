"""Acceptance checks 2 to 6 and 14 on the released models: outputs to the bit, gradients, heads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octo_exp.graph.files.reader import read_model
from octo_exp.graph.train.graph_net import McuNet
from octo_exp.graph.train.trained import NOTHING, Update
from tests.graph.helpers import GOLDEN, MODES, SHIPPED, golden, model_file

pytestmark = pytest.mark.data
BATCHES = ("A", "S")


def batch(name: str) -> Tensor:
    inputs = golden("inputs")
    return torch.from_numpy(inputs["A_int8"]).float() if name == "A" else torch.from_numpy(inputs["S_normalized_f32"])


def with_float_head(model: str, mode: str, **options: bool) -> McuNet:
    values = golden(model)
    net = McuNet(read_model(model_file(model)), num_classes=10, head="fp", mode=mode, **options)
    net.head.linear.weight.data = torch.from_numpy(values["head_weight"])
    net.head.linear.bias.data = torch.from_numpy(values["head_bias"])
    return net


def loss_of(net: McuNet) -> Tensor:
    return F.cross_entropy(net(batch("S")), torch.from_numpy(golden("inputs")["labels"]).long())


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_every_activation_is_the_released_one(model, name, mode):
    values, x = golden(model), batch(name)
    net = McuNet.with_classifier(read_model(model_file(model)), mode=mode)
    x = net.input(x)
    assert np.array_equal(net.classify(x).numpy(), values[f"{name}_logits1000"])
    seen: list[Tensor] = []
    for layer in net.layers:
        y = x
        for conv in getattr(layer, "body", []):
            seen.append(y := conv(y))
        seen.append(x := layer(x))
    pooled, last = seen[-1], seen[-2]
    seen.append(net.head.codes(pooled))
    sums = [[float(t.double().pow(k).sum()) for t in seen] for k in (1, 2)]
    assert sums[0] == values[f"{name}_act_sum"].tolist()
    assert sums[1] == values[f"{name}_act_sumsq"].tolist()
    for key, t in (("first_conv", seen[0]), ("block0", seen[3]), ("last_block", last), ("avgpool", pooled.flatten(1))):
        assert np.array_equal(t.numpy(), values[f"{name}_{key}"]), key


@pytest.mark.parametrize("model", [*SHIPPED, "proxyless-w0.3"])
@torch.no_grad()
def test_integer_is_float_order_layer_by_layer(model):
    """Each layer is given float_order's input; the budget is 1 code in at most 1e-5 of the outputs, 0 are seen."""
    spec = read_model(model_file(model))
    teacher, pupil = (McuNet.with_classifier(spec, mode=mode) for mode in MODES)
    for name in BATCHES:
        x = batch(name)
        for a, b in zip(teacher.layers, pupil.layers, strict=True):
            y = x
            for conv, other in zip(getattr(a, "body", [a]), getattr(b, "body", [b]), strict=True):
                z = other(y)
                y = conv(y)
                assert torch.equal(y, z)
            x = a(x)
        assert torch.equal(teacher(batch(name)), pupil(batch(name)))


def test_every_pixel_gets_the_released_code():
    with np.load(GOLDEN / "input_rounding.npz") as z:
        pixels, normalized, codes = (torch.from_numpy(z[k]) for k in ("pixel", "normalized_f32", "rounded"))
    scale = torch.tensor(1 / 255)
    assert torch.equal((pixels.float() / 255 - 0.5) / scale, normalized)
    assert torch.equal(normalized.round().to(torch.int16), codes)
    assert (int(codes.min()), int(codes.max())) == (-127, 127)


@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_the_whole_graph(model, mode):
    values, net = golden(model), with_float_head(model, mode)
    loss = loss_of(net)
    assert abs(float(loss.detach()) - float(values["S_loss"])) <= 1e-6
    loss.backward()
    for kind in ("weight", "bias"):
        got = np.array([float(getattr(c, kind).grad.double().norm()) for c in net.convs])
        assert np.allclose(got, values[f"S_full_{kind[0]}grad_norm"], rtol=1e-4, atol=0)
    n = len(net.convs)
    stored = {f"{kind}grad_{i}": (i, kind) for i in (0, 1, n - 3, n - 2, n - 1) for kind in "wb"}
    for key, (i, kind) in stored.items():
        got = net.convs[i].weight.grad if kind == "w" else net.convs[i].bias.grad
        close(got, values[f"S_full_{key}"])
    close(net.head.linear.weight.grad, values["S_full_head_wgrad"])
    close(net.head.linear.bias.grad, values["S_full_head_bgrad"])


def close(got: Tensor, want: np.ndarray) -> None:
    expected = torch.from_numpy(want)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.parametrize("mode", MODES)
def test_sparse_gradients_are_the_released_shares(model, mode):
    values, net = golden(model), with_float_head(model, mode)
    for i, conv in enumerate(net.convs):
        mask = values.get(f"sparse_mask_{i}")
        kept = None if mask is None else torch.from_numpy(np.flatnonzero(mask))
        conv.update = Update(train_weight=mask is not None, kept=kept) if values["sparse_has_bias_grad"][i] else NOTHING
    loss_of(net).backward()
    for i, conv in enumerate(net.convs):
        assert (conv.bias.grad is not None) == values["sparse_has_bias_grad"][i]
        assert (conv.weight.grad is not None) == values["sparse_has_weight_grad"][i]
        if conv.bias.grad is not None:
            close(conv.bias.grad, values[f"sparse_bgrad_{i}"])
        if conv.weight.grad is not None:
            close(conv.weight.grad, values[f"sparse_wgrad_{i}"])
            assert torch.equal(conv.weight.grad[:, values[f"sparse_mask_{i}"] == 0].count_nonzero(), torch.tensor(0))


@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.parametrize("mode", MODES)
def test_gradient_codes(model, mode):
    """Codes of gradients are decided by the last bits of sums where a tie is near, and ties are common: taps are 127.

    So the error grows with depth: the last layers are held to 1e-3, all of them to a tenth.
    """
    values, net = golden(model), with_float_head(model, mode, quantize_gradient=True)
    loss_of(net).backward()
    got = np.array([float(c.weight.grad.double().norm()) for c in net.convs])
    error = np.abs(got / values["S_full_wgrad_norm_qgrad"] - 1)
    assert error[-6:].max() <= 1e-3
    assert error.max() <= 0.1
    plain = np.abs(values["S_full_wgrad_norm"] / values["S_full_wgrad_norm_qgrad"] - 1)
    # Further down a rounding here and there is worth as much as the quantisation.
    assert np.median(error[-6:]) < np.median(plain[-6:]) / 3


@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_the_quantised_head_gives_the_released_logits(model, mode):
    values = golden(model)
    net = McuNet(read_model(model_file(model)), num_classes=10, head="quantized", mode=mode)
    assert len(net.convs) == len(values["conv_names"]) + 1
    net.head.weight.copy_(torch.from_numpy(values["qhead_weight"]))
    net.head.bias.copy_(torch.from_numpy(values["qhead_bias"]))
    net.head.effective_scale.copy_(torch.from_numpy(values["qhead_effscale"]))
    assert np.array_equal(net(batch("S")).numpy(), values["S_qhead_logits"])
