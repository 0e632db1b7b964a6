import re

from octo_exp.bench import cost_model

ARGUMENTS = ["model=lenet5", "data=mnist", "--batch", "2", "--rounds", "1"]


def test_a_small_sweep_is_timed_and_a_run_is_priced_once(monkeypatch, capsys):
    monkeypatch.setattr(cost_model, "SIDE", 32)
    assert cost_model.main(ARGUMENTS) == 0
    out = capsys.readouterr().out
    assert "lenet5" in out
    assert re.search(r"pricing / an epoch of 50,000 images: \d+\.\d\d%", out)
    rates = [int(number.replace(",", "")) for number in re.findall(r"(\d[\d,]+) +│\n", out)]
    assert len(rates) == 2
    assert min(rates) > 0
    assert "3,072 machines: cycles" in out


def test_wrong_cycles_print_no_table(monkeypatch, capsys):
    right = cost_model.gemm_cycles
    monkeypatch.setattr(cost_model, "SIDE", 32)
    monkeypatch.setattr(cost_model, "gemm_cycles", lambda *args, **options: right(*args, **options) + 1)
    assert cost_model.main(ARGUMENTS) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the vectorized model is wrong" in captured.err


def test_an_unknown_option_is_one_line(capsys):
    assert cost_model.main(["model=lenet6"]) == 2
    assert "lenet6" in capsys.readouterr().err
