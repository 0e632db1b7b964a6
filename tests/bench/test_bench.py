"""Every benchmark runs one tiny step, prints its table, and prints nothing where outputs are wrong."""

import itertools
import json
import subprocess
import sys

import pytest
import torch

from octo_exp.bench import breakdown, kernels, memory, multiplier, train_step, twin
from octo_exp.bench.measure import alternate, describe, machine, pairwise_ratio
from octo_exp.bench.subjects import build
from octo_exp.kernels import ops
from octo_exp.kernels.cpu import loops
from tests.configs import pairwise

LENET = ["model=lenet5", "data=mnist"]
SMALL = {"lenet5": [], "alexnet": ["model.stages=[16,pool,24,pool]", "model.classifier=[200]"]}


def test_subjects_take_turns():
    order = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, warmup=1, rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in times.values()] == [3, 3]


def test_the_ratio_is_that_of_medians_and_its_spread_that_of_rounds():
    ratio = pairwise_ratio({"a": [2.0, 4.0, 100.0], "b": [1.0, 2.0, 1.0]}, "a", "b")
    assert ratio == {"ratio": 4.0, "p10": 2.0, "p90": 100.0}


def test_the_machine_is_named():
    facts = machine()
    assert facts["torch"] == torch.__version__
    assert f"{facts['threads']} threads" in describe(facts)


def test_train_step(tmp_path, capsys):
    file = tmp_path / "step.json"
    arguments = [*LENET, "--quant", "int8,octo", "--batch", "2", "--rounds", "1", "--no-growth", "--json", str(file)]
    assert train_step.main(arguments) == 0
    result = json.loads(file.read_text())
    assert set(result["milliseconds"]) == {*train_step.PLAIN, "int8", "octo"}
    assert result["ratios"]["int8"]["fp32"]["ratio"] > 0
    assert 0 < result["saved_mib"]["int8"] < result["saved_mib"]["fp32"]
    assert {k: v for k, v in result["precisions"]["octo"].items() if v != "int8"} == {
        "features.0": "fp32",
        "classifier.2": "fp32",
    }
    out = capsys.readouterr().out
    assert "lenet5" in out
    assert "not int8: features.0 fp32, classifier.2 fp32" in out


def test_an_optional_subject_that_is_missing_has_a_row_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments = [*LENET, "--subjects", "torchao_int8", "--batch", "2", "--rounds", "1", "--no-growth"]
    assert train_step.main(arguments) == 0
    assert "torchao_int8" in capsys.readouterr().out


def wrong_epilogue(acc, scale, offset, y, *rest, _right=loops.finish_pool):
    _right(acc, scale, offset, y, *rest)
    y *= 1.001


def test_train_step_refuses_to_print_where_the_fast_path_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(loops, "finish_pool", wrong_epilogue)
    assert train_step.main([*LENET, "--batch", "2", "--rounds", "1", "--no-growth"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "differs from the reference in features.3" in captured.err


def test_train_step_refuses_a_subject_that_computes_another_step(monkeypatch, capsys):
    def halved(g, bits, out, _right=loops.mask_bits):
        _right(g, bits, out)
        out *= -1

    monkeypatch.setattr(loops, "mask_bits", halved)
    assert train_step.main([*LENET, "--batch", "2", "--rounds", "1", "--no-growth"]) == 1
    assert "does not compute the step of fp32" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--quant", "int9"], ["model.widht=3"], ["model=lenet6"]], ids=str)
@pytest.mark.parametrize("main", [train_step.main, twin.main, breakdown.main], ids=lambda f: f.__module__)
def test_a_misspelt_name_is_one_line(main, wrong, capsys):
    assert main([*LENET, *wrong, "--batch", "2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "python train.py --help" in captured.err.replace("\n", " ")


TWINS = {
    "model": ["lenet5", "resnet20"],
    "scheme": ["int8", "octo", "prc", "fake_qat", "octo_ec"],
    "override": ["quant.w.granularity=channel", "quant.g.rounding=stochastic", "seed=0"],
}
PAIRS = [tuple(twins.values()) for twins in pairwise(**TWINS)]


@pytest.mark.parametrize(
    ("model", "scheme", "override"),
    [
        case if case in PAIRS else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(*TWINS.values())
    ],
)
def test_the_fast_path_is_the_references_twin(model, scheme, override):
    if scheme == "fake_qat" and override == "quant.g.rounding=stochastic":
        pytest.skip("fake_qat leaves g float")
    found = twin.compare(build(scheme, [f"model={model}", "data=mnist", override], batch_size=3))
    assert found
    assert not [comparison for comparison in found if not comparison.holds]


def test_a_twin_that_differs_is_told(monkeypatch, capsys):
    monkeypatch.setattr(loops, "finish_pool", wrong_epilogue)
    assert twin.main([*LENET, "--batch", "2"]) == 1
    assert twin.main([*LENET, "quant.skip=[features.*,classifier.*]", "--batch", "2"]) == 2


def test_one_wrong_code_is_found(monkeypatch):
    def wrong(t, out, *rest, _right=loops.quantize):
        _right(t, out, *rest)
        out[0] += 1

    monkeypatch.setattr(loops, "quantize", wrong)
    found = twin.compare(build("int8", LENET, batch_size=2))
    assert not any(comparison.integers_equal for comparison in found)


@pytest.mark.parametrize(("model", "scheme"), [("lenet5", "octo"), ("lenet5", "int8"), ("alexnet", "octo")])
def test_any_number_of_threads_trains_the_same_weights(model, scheme):
    threads, trained = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            subject = build(scheme, [f"model={model}", "data=cifar10", *SMALL[model]], batch_size=40)
            torch.manual_seed(0)
            for _ in range(2):
                subject.step()
            assert torch.get_num_threads() == count
            trained.append([p.detach().clone() for p in subject.net.parameters()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(tensors[0], t) for tensors in zip(*trained, strict=True) for t in tensors[1:])


def test_kernels(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "CEILINGS", [(256, 256, 256), (512, 256, 64)])
    file = tmp_path / "kernels.json"
    assert kernels.main([*LENET, "--batch", "2", "--rounds", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["kernels"]
    names = [row["kernel"] for row in rows]
    assert {"features.3 output + ReLU + pool", "features.3 grad_weight", "features.6 grad_input"} <= set(names)
    assert max(row["share"] for row in rows if row["kernel"].startswith("int8 GEMM")) == 1.0
    assert "of the ceiling" in capsys.readouterr().out


def test_kernels_refuse_to_print_where_one_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(loops, "finish_pool", wrong_epilogue)
    assert kernels.main([*LENET, "--batch", "2", "--rounds", "1"]) == 1
    assert capsys.readouterr().out == ""


def test_products(tmp_path, monkeypatch, capsys):
    file = tmp_path / "multiplier.json"
    assert multiplier.main([*LENET, "--batch", "2", "--rounds", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    roles = ("forward", "grad_input", "grad_weight")
    names = [row["gemm"] for row in result["gemms"]]
    assert names == [*(f"features.{i} {role}" for i in (3, 6) for role in roles), "all"]
    assert result["multiplier"] == ops.backend("torch", "cpu").multiplier in capsys.readouterr().out
    # The second convolution of LeNet-5: 6 to 16 channels, 10x10 outputs.
    counts = [row["operations"] for row in result["gemms"]]
    assert counts[:3] == [2 * 2 * 100 * 16 * 150, 2 * 2 * 196 * 6 * 400, 2 * 2 * 100 * 16 * 150]
    assert counts[-1] == sum(counts[:-1])
    monkeypatch.setattr(multiplier, "float_matmul", lambda a, b: a.float() @ b.float() + 1)
    assert multiplier.main([*LENET, "--batch", "2", "--rounds", "1"]) == 1
    assert capsys.readouterr().out == ""


def test_a_profile_adds_up(capsys):
    spent = breakdown.profile(build("int8", LENET, batch_size=2), rounds=3)
    assert {"int8 GEMM", "loop quantize", "loop finish_pool", "optimizer", "everything else"} <= set(spent)
    assert all(0 < ms < spent["step"] for label, ms in spent.items() if label != "step")
    assert breakdown.main([*LENET, "--batch", "2", "--rounds", "1"]) == 0
    assert "loop spread" in capsys.readouterr().out


@pytest.mark.parametrize(("norm", "most"), [("none", 0.15), ("batch", 0.30)])
def test_what_is_kept_for_the_backward_pass_shrinks(norm, most):
    kept = {}
    for name in ("fp32", "octo"):
        subject = build(name, ["model=vgg11", "data=cifar10", f"model.norm={norm}"], batch_size=16)
        kept[name] = memory.saved_mib(subject)
    assert kept["octo"] <= most * kept["fp32"]


def test_tensors_that_escape_are_counted():
    subject = build("int8", LENET, batch_size=2)
    assert memory.escaped_tensors(subject.loss(), subject.net) == []
    hidden = torch.zeros(1000)

    class Leak(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.hidden = [hidden]
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    assert memory.escaped_tensors(Leak.apply(subject.loss()), subject.net) == [hidden]
    subject.net.cache = {"x": torch.ones(7)}
    assert [t.numel() for t in memory.escaped_tensors(subject.loss(), subject.net)] == [7]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_growth_of_a_step_is_measured_in_its_own_process():
    code = [sys.executable, "-m", "octo_exp.bench.memory", "int8", *LENET, "--batch", "64", "--threads", "1"]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["growth_mib"] > 0
