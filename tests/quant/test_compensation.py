"""Acceptance check 6: exact gradients of LAC, both forms, both granularities."""

import pytest
import torch
import torch.nn.functional as F

from octo_exp.base.errors import UserError
from octo_exp.quant.compensation import affine_term, zero_point_term
from tests.quant.helpers import compensation


def broadcast(term: torch.Tensor) -> torch.Tensor:
    return term.reshape(-1, 1, 1) if term.dim() == 1 else term


@pytest.mark.parametrize("shape", [(3,), (3, 5, 5)])
def test_gradcheck_of_the_zero_point_form(shape):
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    theta = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    zero = torch.tensor(-1.7, dtype=torch.float64)

    def layer(x, w, theta):
        return F.conv2d(x, w, padding=1) + broadcast(zero_point_term(theta, zero * w.flatten(1).sum(1)))

    assert torch.autograd.gradcheck(layer, (x, w, theta))


@pytest.mark.parametrize("shape", [(3,), (3, 5, 5)])
def test_gradcheck_of_the_affine_form(shape):
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def layer(x, w, alpha, mu, offset):
        return F.conv2d(x, w, padding=1) + broadcast(affine_term(alpha, mu, offset))

    assert torch.autograd.gradcheck(layer, (x, w, *parts))


def test_start_values_and_penalty():
    zero_point = compensation(theta_init=-1.0).build((4,))
    assert torch.equal(zero_point.theta, torch.full((4,), -1.0))
    assert zero_point.penalty() is None
    affine = compensation(form="affine").build((4, 2, 2))
    assert torch.equal(affine.alpha, torch.ones(4, 2, 2))
    assert 0 < affine.mu.abs().max() < 1e-2
    expected = 0.05 * (affine.mu.square().sum() + affine.offset.square().sum())
    assert torch.equal(affine.penalty(), expected)
    assert compensation(form="exact").build((4,)) is None


def test_the_affine_form_adds_its_offset():
    parts = (torch.tensor([2.0, 1.0]), torch.tensor([3.0, -1.0]), torch.tensor([0.5, 0.25]))
    assert affine_term(*parts).tolist() == [6.5, -0.75]


@pytest.mark.parametrize(
    "changes", [{"granularity": "batch"}, {"learning_rate": -1.0}, {"form": "affine", "decay": -1.0}]
)
def test_bad_values_are_refused(changes):
    with pytest.raises(UserError, match=r"quant\.compensation"):
        compensation(**changes)
