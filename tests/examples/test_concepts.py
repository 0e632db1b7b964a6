"""docs/concepts.md: its Python runs, its figures are those that the command draws, their numbers the framework's."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import octo_exp
from octo_exp.examples import captured, figures
from tests.pages import run_python


@pytest.fixture
def page(root: Path) -> Path:
    return root / "docs" / "concepts.md"


def test_its_python_runs_in_order(page, capsys):
    run_python(page)
    assert "theta -1.0" in capsys.readouterr().out


def test_its_figures_are_those_that_the_command_draws(page, tmp_path, capsys):
    assert figures.main([str(tmp_path), "--steps", "1"]) == 0
    told = capsys.readouterr().out.splitlines()[1:]
    drawn = {path.name for path in tmp_path.iterdir()}
    assert told == [str(tmp_path / f"{name}.svg") for name in figures.FIGURES]
    assert drawn == set(re.findall(r"\(figures/(.+?)\)", page.read_text()))
    assert drawn == {path.name for path in (page.parent / "figures").iterdir()}
    for path in tmp_path.iterdir():
        assert len(list(ElementTree.parse(path).getroot().iter())) > 100


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert figures.main([str(tmp_path / "file" / "folder")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1


def codes_in_training(t: Tensor, scheme: str, **changes: object) -> Tensor:
    """What a scheme makes of a gradient t [M, O], in float: its weight gradient for inputs that are the identity."""
    layer = nn.Linear(len(t), t.shape[1], bias=False)
    octo_exp.quantize(nn.Sequential(layer), scheme, skip=[], **changes)(torch.eye(len(t))).backward(t)
    return layer.weight.grad.t()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("form", "bounds"),
    [
        ("ratio", lambda g: captured.ratio_range(g, figures.COEFFICIENT)),
        ("gaussian", lambda g: captured.gaussian_range(g, figures.Z)),
    ],
)
def test_a_clipped_gradient_is_the_frameworks(form, bounds, bits):
    g = torch.randn(64, 16).pow(3)
    framework = codes_in_training(g, "prc", clip=form, g={"bits": bits})
    drawn = captured.rounded(g, *bounds(g), bits)
    assert drawn.unique().numel() > 2 * bits
    torch.testing.assert_close(drawn, framework, rtol=1e-5, atol=0)


@pytest.mark.parametrize("theta", [0.0, -1.0, 0.3])
def test_a_compensated_output_is_the_frameworks(theta):
    x, w = torch.randn(50, 30).relu() - 0.2, torch.randn(7, 30)
    layer = nn.Linear(30, 7, bias=False)
    layer.load_state_dict({"weight": w})
    net = octo_exp.quantize(nn.Sequential(layer), "lac", skip=[], compensation={"theta_init": theta})
    product, term = captured.product_and_term(x, w)
    torch.testing.assert_close(product - (1 + theta) * term, net(x))


def test_what_is_captured_is_one_layer_of_one_step():
    found = captured.capture(1, batch=4)
    assert (found.x.shape, found.w.shape, found.g.shape) == ((4 * 10 * 10, 150), (16, 150), (4 * 10 * 10, 16))
    assert found.x.count_nonzero() > 0
    assert 0 < found.g.count_nonzero() <= found.g.numel() // 4
