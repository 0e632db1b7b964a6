import dataclasses
import json
import logging

import pytest
import torch
from torch import nn

from octo_exp.models.lenet5 import LeNet5
from octo_exp.nn.convert import convert
from octo_exp.nn.float_block import Bf16Conv2d, Bf16Linear, FloatLinear
from octo_exp.nn.guard import Guard
from octo_exp.nn.layers import QuantConv2d, QuantLayer
from octo_exp.quant.rounding import Clock
from octo_exp.quant.scheme import Scheme
from tests.nn import helpers

SHAPE = (1, 32, 32)


def scheme(name: str) -> Scheme:
    return dataclasses.replace(helpers.scheme(name), skip=("first", "last"))


def net() -> nn.Module:
    torch.manual_seed(0)
    return LeNet5(in_channels=1, num_classes=10, image_size=32, norm="none", pool="max", relu=["c1", "c3", "c5", "f6"])


def guard(tmp_path, monkeypatch, layer, whole) -> tuple[Guard, list[str]]:
    """A guard whose clock says what the test says: milliseconds of a layer by name, and of the net."""
    measured = []
    monkeypatch.setattr(Guard, "_time_layer", lambda self, model, name, *_: measured.append(name) or layer[name])
    monkeypatch.setattr(Guard, "_time_net", lambda self, *_: measured.append("(net)") or whole)
    return Guard(batch_size=4, cache=tmp_path / "deep" / "guard.json"), measured


LAYERS = {
    "features.3": {"int8": 1.0, "bf16": 2.0, "fp32": 3.0},
    "features.6": {"int8": 3.0, "bf16": 1.0, "fp32": 2.0},
    "classifier.0": {"int8": 2.0, "bf16": 3.0, "fp32": 1.0},
}
WHOLE = {"guarded": 1.0, "fp32": 2.0, "bf16": 3.0}


def test_int8_stays_only_where_it_is_the_fastest(tmp_path, monkeypatch):
    found, _ = guard(tmp_path, monkeypatch, LAYERS, WHOLE)
    model = net()
    verdict = found.verdict(model, scheme("int8"), impl="torch", input_shape=SHAPE)
    assert verdict.keep == {"features.6": "bf16", "classifier.0": "fp32"}
    assert verdict.whole is None
    assert verdict.lines()[0] == "speed guard: features.6 stays bf16: bf16 1.00 ms, fp32 2.00 ms, int8 3.00 ms"
    assert type(model.features[3]) is nn.Conv2d
    parameters = dict(model.named_parameters())
    converted = convert(model, scheme("int8"), impl="torch", clock=Clock(), keep=verdict.keep).quantized
    assert converted == ("features.3",)
    kinds = [type(model.get_submodule(name)) for name in ("features.3", "features.6", "classifier.0")]
    assert kinds == [QuantConv2d, Bf16Conv2d, FloatLinear]
    assert all(p is parameters[name] for name, p in model.named_parameters())
    model(torch.randn(4, *SHAPE)).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_layer_may_become_bf16_linear():
    model = net()
    convert(model, scheme("int8"), impl="torch", clock=Clock(), keep={"classifier.0": "bf16"})
    assert type(model.classifier[0]) is Bf16Linear
    x = torch.randn(4, model.classifier[0].in_features)
    exact = nn.functional.linear(
        x.bfloat16(), model.classifier[0].weight.bfloat16(), model.classifier[0].bias.bfloat16()
    )
    assert torch.equal(model.classifier[0](x), exact.float())


def test_what_was_measured_is_kept_on_disk(tmp_path, monkeypatch):
    found, measured = guard(tmp_path, monkeypatch, LAYERS, WHOLE)
    first = found.verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE)
    assert measured == [*LAYERS, "(net)"]
    assert found.verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE) == first
    assert len(measured) == 4
    found.verdict(net(), scheme("octo"), impl="torch", input_shape=SHAPE)
    assert len(measured) == 8
    assert len(json.loads(found.cache.read_text())) == 8


def test_a_broken_cache_is_measured_anew_with_a_warning(tmp_path, monkeypatch, caplog):
    found, measured = guard(tmp_path, monkeypatch, LAYERS, WHOLE)
    found.cache.parent.mkdir()
    found.cache.write_text("{half")
    with caplog.at_level(logging.WARNING):
        found.verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE)
    assert "not readable" in caplog.text
    assert len(measured) == 4
    assert len(json.loads(found.cache.read_text())) == 4


@pytest.mark.parametrize("entry", [5, {}, {"int8": 1.0}, {"int8": "a", "bf16": 1, "fp32": 1}, None])
def test_a_damaged_entry_is_measured_anew(tmp_path, monkeypatch, entry):
    found, measured = guard(tmp_path, monkeypatch, LAYERS, WHOLE)
    first = found.verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE)
    whole = json.loads(found.cache.read_text())
    found.cache.write_text(json.dumps(dict.fromkeys(whole, entry)))
    assert found.verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE) == first
    assert len(measured) == 8
    assert json.loads(found.cache.read_text()) == whole


def test_without_a_place_to_remember_it_measures_and_says_so_once(tmp_path, monkeypatch, caplog):
    found, measured = guard(tmp_path, monkeypatch, LAYERS, WHOLE)
    (tmp_path / "deep").touch()
    verdicts = [found.verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE) for _ in range(2)]
    assert verdicts[0] == verdicts[1]
    assert len(measured) == 8
    assert caplog.text.count("set OCTO_CACHE_DIR") == len(caplog.records) == 1


def test_what_two_runs_measure_at_once_both_stay(tmp_path, monkeypatch):
    first, _ = guard(tmp_path, monkeypatch, LAYERS, WHOLE)
    second = dataclasses.replace(first, batch_size=8)

    def meanwhile(names):
        second.verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE)
        return names

    # The second run begins after the first has read the file, and ends before it writes.
    dataclasses.replace(first, progress=meanwhile).verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE)
    assert len(json.loads(first.cache.read_text())) == 8


@pytest.mark.parametrize("best", ["fp32", "bf16"])
def test_a_plain_net_that_is_faster_stays_plain(tmp_path, monkeypatch, best):
    found, _ = guard(tmp_path, monkeypatch, LAYERS, {"guarded": 2.0, "fp32": 3.0, "bf16": 4.0, best: 1.0})
    verdict = found.verdict(net(), scheme("int8"), impl="torch", input_shape=SHAPE)
    assert verdict.whole == best
    assert verdict.lines()[0].startswith(f"speed guard: the whole net stays {best}: {best} 1.00 ms")


def test_it_measures(tmp_path):
    found = Guard(batch_size=2, cache=tmp_path / "guard.json", rounds=1)
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    verdict = found.verdict(model, scheme("octo"), impl="torch", input_shape=SHAPE)
    # What a run draws next is the same whether it was measured now or read from disk.
    assert torch.equal(torch.get_rng_state(), generator)
    assert set(verdict.milliseconds) == {*LAYERS, "(net)"}
    assert all(value > 0 for times in verdict.milliseconds.values() for value in times.values())
    assert not [m for m in model.modules() if isinstance(m, QuantLayer)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
