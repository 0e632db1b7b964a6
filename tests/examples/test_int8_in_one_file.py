"""The file that explains int8 training in plain torch computes what the framework computes, bit for bit."""

import ast
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octo_exp
from octo_exp.examples import int8_in_one_file as one_file
from octo_exp.models.lenet5 import LAYERS, LeNet5

SHAPE = {"in_channels": 1, "num_classes": 10, "image_size": 32}
FILE = Path(one_file.__file__)


def as_layer(matrix: Tensor, layer: nn.Module) -> Tensor:
    """[O, k*k*C], as the file holds a weight (or its gradient) -> the shape in which torch's layers do."""
    if isinstance(layer, nn.Linear):
        return matrix
    return matrix.unflatten(1, (*layer.kernel_size, layer.in_channels)).permute(0, 3, 1, 2)


def framework_twin(net: one_file.LeNet5, scheme: str, impl: str) -> tuple[nn.Module, list[nn.Module]]:
    """The framework's LeNet-5 with the file's weights, all five layers quantised; the layers, in order."""
    twin = LeNet5(**SHAPE, norm="none", pool="max", relu=LAYERS)
    layers = [module for module in twin.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer, own, bias in zip(layers, net.layers, net.biases, strict=True):
            layer.weight.copy_(as_layer(own.weight, layer))
            layer.bias.copy_(bias)
    octo_exp.quantize(twin, scheme, impl=impl, skip=[])
    return twin, layers


def assert_equal(net: one_file.LeNet5, layers: list[nn.Module], *, gradients: bool) -> None:
    for layer, own, bias in zip(layers, net.layers, net.biases, strict=True):
        weight, value = (own.weight.grad, bias.grad) if gradients else (own.weight, bias)
        theirs = (layer.weight.grad, layer.bias.grad) if gradients else (layer.weight, layer.bias)
        assert torch.equal(as_layer(weight, layer), theirs[0])
        assert torch.equal(value, theirs[1])


# The reference's products run in float64, and so do the file's where torch has no exact ones.
@pytest.mark.parametrize(
    ("scheme", "keep", "impl", "has_int_mm"),
    [("int8", 1.0, "torch", one_file.HAS_INT_MM), ("prc", 0.95, "reference", False)],
)
def test_every_step_equals_the_frameworks_bit_for_bit(scheme, keep, impl, has_int_mm, monkeypatch):
    monkeypatch.setattr(one_file, "HAS_INT_MM", has_int_mm)
    net = one_file.LeNet5(keep=keep)
    twin, layers = framework_twin(net, scheme, impl)
    images, labels = torch.rand(6, 1, 32, 32) * 2 - 1, torch.arange(6)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.02, momentum=0.9) for each in (net, twin)]
    for _ in range(2):
        losses = [F.cross_entropy(each(images), labels) for each in (net, twin)]
        assert torch.equal(*losses)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
        assert_equal(net, layers, gradients=True)
        assert all(layer.weight.grad.count_nonzero() > 0 for layer in layers)
        for optimizer in optimizers:
            optimizer.step()
        assert_equal(net, layers, gradients=False)
    with torch.no_grad():
        assert torch.equal(net.eval()(images[:3]), twin.eval()(images[:3]))


def test_it_needs_torch_and_the_standard_library_and_can_be_read_in_one_sitting():
    text = FILE.read_text()
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"torch"}
    assert "import octo_exp" not in text
    assert "from octo_exp" not in text
    assert len(text.splitlines()) <= 210


@pytest.mark.parametrize("has_int_mm", [one_file.HAS_INT_MM, False])
def test_its_products_are_exact_at_the_extreme_codes(has_int_mm, monkeypatch):
    monkeypatch.setattr(one_file, "HAS_INT_MM", has_int_mm)
    a = torch.tensor([127, -127], dtype=torch.int8).repeat(7, 2000)
    product = one_file.int_mm(a, a.t())
    assert product.dtype == torch.int32
    assert torch.equal(product, torch.full((7, 7), 4000 * 127 * 127, dtype=torch.int32))


def test_its_command_tells_how_the_training_goes(monkeypatch, capsys):
    images, labels = one_file.digits()
    monkeypatch.setattr(one_file, "digits", lambda: (images[:40], labels[:40]))
    assert 0 <= one_file.main(epochs=2, batch=16, test=8) <= 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1, step 1", "epoch 1", "epoch 2, step 1", "epoch 2"]


@pytest.mark.slow
def test_it_learns_the_digits():
    assert one_file.main() > 0.95
