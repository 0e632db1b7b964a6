"""The comparison of searches prices one tiny space by every method."""

import json

import pytest

from sweeps import compare_searches

TINY = ["model=lenet5", "space={rows:{from:1,to:24},cols:{from:1,to:24}}", "constraints.processing_elements={max:64}"]


def test_a_tiny_search_by_every_method(tmp_path, capsys):
    file = tmp_path / "search.json"
    assert compare_searches.main([*TINY, "--seeds", "3", "--share", "0.5", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    feasible = sum(rows * cols <= 64 for rows in range(1, 25) for cols in range(1, 25))
    assert (result["feasible"], result["budget"], result["gemms"]) == (feasible, feasible // 2, 14)
    assert list(result["methods"]) == list(compare_searches.METHODS)
    for row in result["methods"].values():
        assert 0 <= row["exact"] <= row["near"] <= 3
        assert (row["worst_gap"] <= compare_searches.NEAR) == (row["near"] == 3)
        # Relative: the cycles themselves are millions.
        assert row["worst_gap"] < 10
        assert 0 < row["distinct"] <= result["budget"]
    assert result["methods"]["genetic"]["distinct"] == result["budget"]
    out = capsys.readouterr().out
    assert "within 1 %" in out
    assert "genetic" in out


def test_a_budget_of_everything_finds_the_best(capsys):
    assert compare_searches.main([*TINY, "--seeds", "2", "--share", "1", "--methods", "genetic,random"]) == 0
    assert capsys.readouterr().out.count("2/2") == 4


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (["--methods", "annealing"], "unknown method 'annealing': choose among genetic, random, nsga2"),
        (["--share", "0"], "--share in 0..1"),
        (["model=lenet6"], "python sweeps/dse.py --help"),
        (["constraints.processing_elements=7.5"], "none of the space's 576 designs"),
    ],
)
def test_a_mistake_is_one_line(wrong, line, capsys):
    assert compare_searches.main([*TINY, *wrong]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert line in captured.err.replace("\n", " ")
