"""What a training step keeps for its backward pass: codes, bits and scales, and nothing beside autograd's own books."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from octo_exp.kernels import ops
from octo_exp.nn.layers import QuantLayer
from tests.nn.helpers import quantized, scheme
from tests.nn.test_fuse import SHAPE, converted, plain_net, residual_net

BATCH = 6
# Scales, statistics of channels, the last layer's input.
SMALL = BATCH * 17


def saved_by(call: Any) -> tuple[Any, list[torch.Tensor]]:
    """(what `call` returns, every tensor that autograd saves meanwhile)."""
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        return call(), saved


def nodes(root: Any) -> Iterator[Any]:
    """Every node of the graph behind `root`, once."""
    seen, pending = set(), [root]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending += [following for following, _ in node.next_functions]


def tensors_in(value: Any, seen: dict[int, Any]) -> Iterator[torch.Tensor]:
    """Tensors that hang on a value, however deep, but for parameters and buffers."""
    if id(value) in seen:
        return
    # Kept alive: an id may be given out again.
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module):
        own = {k: v for k, v in vars(value).items() if k not in ("_parameters", "_buffers")}
        yield from tensors_in(own, seen)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from tensors_in(vars(value), seen)


def step(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(loss, the big tensors that its graph saved, parameters and buffers left out)."""
    owned = {t.data_ptr() for t in (*net.parameters(), *net.buffers())}
    loss, saved = saved_by(lambda: net(x).square().sum())
    return loss, [t for t in saved if t.numel() > SMALL and t.data_ptr() not in owned]


@pytest.mark.parametrize("name", ["int8", "octo"])
def test_a_plain_net_keeps_codes_bits_and_places(name):
    net, x = converted(plain_net(), name, skip="[first,last]"), torch.randn(BATCH, *SHAPE)
    _, big = step(net, x)
    kept = sorted((str(t.dtype).removeprefix("torch."), t.numel() // BATCH) for t in big)
    # The float first layer's input and its places; codes of the inputs of conv2 to conv4; conv2's places; relu3's bits.
    codes, places = [7 * 7 * 7, 16 * 3 * 3, 9 * 3 * 3], [7 * 7 * 7, 16 * 3 * 3]
    assert kept == sorted([("float32", 3 * 15 * 14), *(("int8", n) for n in codes + places), ("uint8", 2 * 3 * 3)])


@pytest.mark.parametrize(("norm_input", "kept"), [("int8", torch.int8), ("bf16", torch.bfloat16)])
def test_a_residual_net_keeps_codes_bits_and_the_norms_inputs(norm_input, kept):
    net, x = converted(residual_net(), norm_input=norm_input), torch.randn(BATCH, *SHAPE)
    _, big = step(net, x)
    types = [t.dtype for t in big]
    # The inputs of five convolutions and three norms, the bits of four ReLUs, the square's input.
    assert sorted(map(str, types)) == sorted(
        [*["torch.int8"] * 5, *[str(kept)] * 3, *["torch.uint8"] * 4, "torch.float32"]
    )


@pytest.mark.parametrize("make", [plain_net, residual_net])
@pytest.mark.parametrize("name", ["int8", "octo", "fake_qat"])
def test_no_tensor_hangs_beside_autograds_books(make, name):
    net = converted(make(), name)
    x = torch.randn(BATCH, *SHAPE, requires_grad=True)
    loss, _ = step(net, x)
    custom = [node for node in nodes(loss.grad_fn) if hasattr(node, "__dict__")]
    kinds = {type(node).__name__ for node in custom}
    assert {"QuantGemmBackward"} <= kinds
    hanging = [t for node in custom for t in tensors_in(vars(node), {})]
    hanging += list(tensors_in(net, {}))
    assert hanging == []
    loss.backward()
    assert list(tensors_in(net, {})) == []


def convolution(name: str, **changes: object) -> QuantLayer:
    return quantized(nn.Conv2d(8, 8, 3, padding=1), scheme(name, **changes))


def test_a_layer_saves_its_inputs_codes_and_the_weight_itself():
    layer, x = convolution("octo", w__granularity="channel"), torch.rand(5, 8, 9, 9, requires_grad=True)
    _, saved = saved_by(lambda: layer(x))
    big = [t for t in saved if t.numel() > 16]
    # The weight is there anyway: its codes are made again.
    assert [t.data_ptr() for t in big if t.is_floating_point()] == [layer.weight.data_ptr()]
    assert [(t.dtype, t.shape) for t in big if not t.is_floating_point()] == [(torch.int8, x.shape)]


def test_codes_that_cannot_be_made_again_are_saved():
    layer, x = convolution("int8", w__rounding="stochastic"), torch.rand(5, 8, 9, 9, requires_grad=True)
    _, saved = saved_by(lambda: layer(x))
    assert sorted((t.dtype, t.numel()) for t in saved if t.numel() > 16) == sorted(
        [(torch.int8, x.numel()), (torch.int8, layer.weight.numel())]
    )


def test_a_bf16_role_saves_bf16():
    layer, x = convolution("int8", grad_weight="bf16"), torch.rand(5, 8, 9, 9)
    _, saved = saved_by(lambda: layer(x))
    assert [t.dtype for t in saved if t.shape == x.shape] == [torch.bfloat16]


@pytest.mark.parametrize("make", [lambda: convolution("int8"), lambda: converted(plain_net(), skip="[first]")[0]])
def test_frozen_and_first_layers_save_and_compute_nothing_for_the_missing_role(make, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("this gradient is not wanted")

    cpu = type(ops.backend("torch", "cpu"))
    layer = make()
    x = torch.randn(2, layer.in_channels, 8, 8)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "conv2d_grad_input_scaled", refuse)
        patch.setattr("octo_exp.nn.float_block.conv2d_input", refuse)
        y, saved = saved_by(lambda: layer(x))
        assert all(t.data_ptr() != layer.weight.data_ptr() for t in saved)
        y.sum().backward()
    layer.weight.requires_grad_(False)
    monkeypatch.setattr(cpu, "conv2d_grad_weight_scaled", refuse)
    monkeypatch.setattr(cpu, "float_conv2d_grad_weight", refuse)
    x.requires_grad_()
    y, saved = saved_by(lambda: layer(x))
    assert all(t.shape != x.shape for t in saved)
    y.sum().backward()
    assert x.grad is not None
