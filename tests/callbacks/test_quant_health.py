import pytest
import torch

from octo_exp.callbacks.quant_health import operand_health
from octo_exp.quant.qtensor import QTensor


def test_health_of_a_clipped_tensor():
    t = torch.tensor([0.0, 1.0, -2.0, 10.0])
    q = QTensor(values=torch.tensor([0, 1, -2, 7], dtype=torch.int8), scale=torch.tensor(1.0))
    health = operand_health(t, q, -7, 7)
    assert health["clipped"] == 0.25
    assert health["saturated"] == 0.25
    expected = torch.nn.functional.cosine_similarity(t, q.dequantize(), dim=0)
    assert health["cosine"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_cosine_does_not_depend_on_the_magnitude(size):
    t = torch.randn(100).double().float() * size
    q = QTensor(values=torch.round(t / size * 30).clamp(-127, 127).to(torch.int8), scale=torch.tensor(size / 30))
    assert 0.99 < operand_health(t, q, -127, 127)["cosine"].item() <= 1.0001


def test_zero_tensors_are_healthy():
    q = QTensor(values=torch.zeros(5, dtype=torch.int8), scale=torch.tensor(1e-38))
    health = operand_health(torch.zeros(5), q, -127, 127)
    assert health["cosine"] == 1.0
    assert health["clipped"] == health["saturated"] == 0.0
