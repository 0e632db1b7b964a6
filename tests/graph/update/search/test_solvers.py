"""What options cost is the account's own; solvers fit the budget and find what trying every choice finds."""

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_exp.base.errors import UserError
from octo_exp.graph.train.update.convolutions import LayerShape
from octo_exp.graph.train.update.extra_memory import update_memory
from octo_exp.graph.train.update.search import Evolution, Exact
from octo_exp.graph.train.update.search.problem import Choice, Problem, Space
from octo_exp.graph.train.update.selection import SparseUpdate
from tests.graph.update.helpers import MODELS, released_shapes, sparse

RATIOS = (0.125, 0.25, 0.5, 1.0)
BASE = SparseUpdate(**sparse())


def evolution(**changes) -> Evolution:
    usual = {"population": 32, "generations": 60, "crossover": 0.5, "mutation": 2.0, "seed": 0}
    return Evolution(**usual | changes)


def space(shapes, kb: float, **changes) -> Space:
    return Space(
        **{
            "shapes": tuple(shapes),
            "head_inputs": shapes[-1].out_channels,
            "ratios": RATIOS,
            "pw1_only": False,
            "budget_kb": kb,
        }
        | changes
    )


def problem(shapes, kb: float, seed: int) -> Problem:
    """With gains that depend on the seed; whole numbers, so that sums in any order are the same."""
    room = space(shapes, kb)
    weights = {(i, r): (i * 37 + int(r * 8) * 11 + seed * 13) % 29 - 6 for i, r, _ in room.weights()}
    return Problem.of(room, [(k * 7 + seed) % 23 - 3 if k else 0 for k in range(len(room.shapes) + 1)], weights)


def account(p: Problem, choice: Choice, shapes) -> int:
    rules = p.scheme(choice, BASE).rules(shapes)
    return update_memory(shapes, rules, head_inputs=shapes[-1].out_channels).bits


def tried(p: Problem) -> float:
    """The largest gain of all choices that fit, each weight layer among those that train their bias."""
    convs, gains = len(p.weights), []
    for n_bias in range(len(p.biases)):
        places = [range(len(options) if i >= convs - n_bias else 1) for i, options in enumerate(p.weights)]
        gains += [p.gain(c) for c in product([n_bias], *places) if p.bits(c) <= p.budget_bits]
    return max(gains)


@st.composite
def small_shapes(draw):
    shapes = []
    for _ in range(draw(st.integers(1, 4))):
        c_in, c_out, kernel, side = (
            draw(st.sampled_from(s)) for s in ([1, 7, 16, 63, 65], [1, 7, 16, 63], [1, 3], [1, 4])
        )
        depthwise = draw(st.booleans())
        shapes.append(
            LayerShape(
                in_channels=c_in,
                out_channels=c_in if depthwise else c_out,
                groups=c_in if depthwise else 1,
                kernel=(kernel, kernel),
                in_size=(side, side),
                out_size=(side, side),
            )
        )
    return shapes


@settings(max_examples=60)
@given(small_shapes(), st.floats(0.07, 6), st.integers(0, 1000))
def test_the_solvers_find_the_optimum_of_small_networks_within_the_budget(shapes, kb, seed):
    p = problem(shapes, kb, seed)
    best = tried(p)
    for solver in (Exact(), evolution()):
        choice = solver(p)
        assert p.bits(choice) == account(p, choice, shapes) <= int(kb * 8192)
        assert p.gain(choice) >= (best if isinstance(solver, Exact) else best - 0.01 * abs(best))


@settings(max_examples=15)
@given(st.sampled_from(list(MODELS)), st.floats(0.2, 400), st.integers(0, 1000))
def test_no_budget_is_exceeded_by_a_released_model(model, kb, seed):
    shapes = released_shapes(model)
    p = problem(shapes, kb, seed)
    exact, evolved = Exact()(p), evolution(generations=3)(p)
    for choice in (exact, evolved):
        assert p.bits(choice) == account(p, choice, shapes) <= int(kb * 8192)
    assert p.gain(exact) >= p.gain(evolved)


@pytest.mark.parametrize("model", MODELS)
def test_evolution_comes_near_the_optimum_of_a_released_model(model):
    p = problem(released_shapes(model), 100, 1)
    assert p.gain(evolution(generations=200)(p)) >= 0.95 * p.gain(Exact()(p)) > 0


def test_the_seed_decides_an_evolution():
    p = problem(released_shapes("mcunet-5fps"), 100, 1)
    first = evolution(generations=2)(p)
    assert first == evolution(generations=2)(p) != evolution(generations=2, seed=1)(p)


def test_of_equal_gains_the_cheaper_is_found():
    shapes = released_shapes("mcunet-5fps")
    room = space(shapes, 100)
    p = Problem.of(room, [0.0] * (len(shapes) + 1), {(i, r): 0.5 * (i == 40) for i, r, _ in room.weights()})
    for solver in (Exact(), evolution()):
        assert p.scheme(solver(p), BASE).weight_idx == (40,)
        assert p.scheme(solver(p), BASE).ratio == (0.125,)
        assert solver(p)[0] == 2


@pytest.mark.parametrize("solver", [Exact(), evolution()], ids=["exact", "evolution"])
def test_a_budget_of_the_heads_own_memory_leaves_the_head(solver):
    shapes = released_shapes("mcunet-5fps")
    p = problem(shapes, 0.15625, 0)
    scheme = p.scheme(solver(p), BASE)
    assert (scheme.n_bias, scheme.weight_idx, scheme.ratio) == (0, None, None)
    assert not any(rule.train_bias or rule.train_weight for rule in scheme.rules(shapes))


def test_weights_that_diverged_or_lose_are_no_option():
    room = space(released_shapes("mcunet-5fps"), 100)
    for gain in (float("nan"), float("-inf"), 0.0, -1.0):
        p = Problem.of(room, [0.0] * 43, {(i, r): gain for i, r, _ in room.weights()})
        assert all(len(options) == 1 for options in p.weights)


def test_a_budget_below_the_heads_memory_is_refused():
    with pytest.raises(UserError, match=r"^update\.budget_kb=0\.15 is less than the 0\.157 KB that the head") as error:
        space(released_shapes("mcunet-5fps"), 0.15)
    assert "\n" not in str(error.value)


@settings(max_examples=200)
@given(st.integers(1, 200_000))
def test_the_least_budget_that_is_told_is_accepted(head_inputs):
    shapes = [LayerShape(in_channels=1, out_channels=1, groups=1, kernel=(1, 1), in_size=(1, 1), out_size=(1, 1))]
    with pytest.raises(UserError) as error:
        space(shapes, 1e-9, head_inputs=head_inputs)
    told = float(re.search(r"less than the ([\d.]+) KB", str(error.value))[1])
    assert space(shapes, told, head_inputs=head_inputs).most_biases >= 0
    assert told < head_inputs / 1024 + 1e-3


def test_only_what_a_scheme_can_name_is_an_option():
    shapes = [
        LayerShape(in_channels=c, out_channels=o, groups=g, kernel=(1, 1), in_size=(1, 1), out_size=(1, 1))
        for c, o, g in ((3, 8, 1), (8, 8, 4), (8, 2, 1))
    ]
    options = [(i, r) for i, r, _ in space(shapes, 10).weights()]
    assert options == [(0, 0.5), (0, 1.0), (1, 1.0), *((2, r) for r in RATIOS)]
    assert [(i, r) for i, r, _ in space(shapes, 10, pw1_only=True).weights()] == [(0, 0.5), (0, 1.0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": 0}, "population=0"),
        ({"generations": 0}, "generations=0"),
        ({"crossover": 1.5}, "crossover=1.5"),
        ({"mutation": -1}, "mutation=-1"),
    ],
)
def test_what_evolution_refuses(changes, message):
    with pytest.raises(UserError, match=rf"^update\.search\.solver\.{message} must be"):
        evolution(**changes)
