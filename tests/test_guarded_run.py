"""`kernel.guard=true`: the verdict reaches the net, the precision, the terminal and results.json."""

import pytest

from octo_exp.nn.guard import Guard
from octo_exp.runs import run
from tests.run_helpers import go

SMALL = ("model=lenet5", "quant=octo", "trainer=debug", "logger=csv", "data.limit_train=200", "hw=[]")
FASTEST = {"features.3": "int8", "features.6": "bf16", "classifier.0": "fp32"}


@pytest.mark.parametrize("whole", ["guarded", "bf16"])
def test_a_guarded_run_says_what_stays_float(tmp_path, monkeypatch, capsys, whole):
    def layer(self, net, name, *rest):
        return {kind: 1.0 if kind == FASTEST[name] else 2.0 for kind in ("int8", "bf16", "fp32")}

    def net(self, *rest):
        return {kind: 1.0 if kind == whole else 2.0 for kind in ("guarded", "fp32", "bf16")}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Guard, "_time_layer", layer)
    monkeypatch.setattr(Guard, "_time_net", net)
    precisions, facts = [], run.facts
    monkeypatch.setattr(
        run, "facts", lambda cfg, trainer, *rest: precisions.append(trainer.precision) or facts(cfg, trainer, *rest)
    )
    results = go(tmp_path / "run", *SMALL, "kernel.guard=true")
    assert precisions == ["bf16-mixed" if whole == "bf16" else "32-true"]
    out = capsys.readouterr().out
    assert (tmp_path / "cache" / "octo_exp" / "speed_guard.json").exists()
    if whole == "bf16":
        assert results["quantized_layers"] == []
        assert results["speed_guard"]["whole"] == "bf16"
        assert "stays bf16: bf16 1.00 ms" in out
    else:
        assert results["quantized_layers"] == ["features.3"]
        assert results["speed_guard"]["keep"] == {"features.6": "bf16", "classifier.0": "fp32"}
        assert "speed guard: features.6 stays bf16: bf16 1.00 ms, int8 2.00 ms, fp32 2.00 ms" in out


def test_without_the_guard_there_is_no_verdict(tmp_path):
    results = go(tmp_path, *SMALL)
    assert results["speed_guard"] is None
    assert results["quantized_layers"] == ["features.3", "features.6", "classifier.0"]
