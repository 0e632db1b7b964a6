from types import SimpleNamespace

import pytest
import torch
from torch import nn

from octo_exp.nn.convert import convert
from octo_exp.quant.quantizer import QTensor
from octo_exp.quant.rounding import Clock
from octo_exp.runs.callbacks.quant_health import QuantHealth, operand_health
from tests.nn.helpers import scheme


def test_health_of_a_clipped_tensor():
    t = torch.tensor([0.0, 1.0, -2.0, 10.0])
    q = QTensor(values=torch.tensor([0, 1, -2, 7], dtype=torch.int8), scale=torch.tensor(1.0))
    health = operand_health(t, q, -7, 7)
    assert health["clipped"] == 0.25
    assert health["saturated"] == 0.25
    expected = torch.nn.functional.cosine_similarity(t, q.dequantize(), dim=0)
    assert health["cosine"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_both_end_codes_are_saturated():
    values = torch.tensor([-128, -127, 0, 126, 127, 127, -128, 5], dtype=torch.int8)
    q = QTensor(values=values, scale=torch.tensor(0.5), zero_point=torch.tensor(3, dtype=torch.int32))
    assert operand_health(q.dequantize(), q, -128, 127)["saturated"] == 4 / 8
    assert operand_health(q.dequantize(), q, -127, 126)["saturated"] == 2 / 8


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


def test_the_probe_opens_on_its_steps_closes_after_them_and_keeps_the_worst():
    net = nn.Sequential(nn.Linear(4, 4))
    convert(net, scheme("int8"), impl="torch", clock=Clock())
    logged, callback = {}, QuantHealth(every_n_steps=2)
    logger = SimpleNamespace(log_metrics=lambda numbers, step: logged.update({step: numbers}))
    module = SimpleNamespace(net=net)
    callback.on_train_start(None, module)
    assert callback.results == {}
    for step in range(3):
        trainer = SimpleNamespace(global_step=step, loggers=[logger])
        callback.on_train_batch_start(trainer, module, None, step)
        assert (net[0].observer is not None) == (step % 2 == 0)
        net(torch.randn(3, 4)).square().sum().backward()
        callback.on_train_batch_end(trainer, module, None, None, step)
        assert net[0].observer is None
    assert list(logged) == [0, 2]
    keys = {f"quant/0/{operand}_{key}" for operand in "xwg" for key in ("clipped", "saturated", "cosine")}
    assert all(set(numbers) == keys for numbers in logged.values())
    cosines = [numbers["quant/0/g_cosine"] for numbers in logged.values()]
    assert cosines[0] != cosines[1]
    assert callback.results == {"quant/min_g_cosine": min(cosines), "quant/min_g_cosine_layer": "0"}


def test_a_step_that_is_not_finite_is_not_the_worst():
    callback = QuantHealth(every_n_steps=1)
    for value in (float("nan"), 0.5, float("nan"), 0.25, 0.75):
        callback._remember_worst({"quant/a/g_cosine": value})
    assert callback.results == {"quant/min_g_cosine": 0.25, "quant/min_g_cosine_layer": "a"}
