"""The sentences about numbers that rooms share: their other tests say which field is named, and what it was."""

import pytest

from octo_exp.base.errors import UserError
from octo_exp.base.numbers import check_number


@pytest.mark.parametrize(
    ("value", "whole", "told"),
    [
        (1.5, True, "must be a whole number, got 1.5"),
        (True, True, "must be a whole number, got True"),
        ("8", False, "must be a number, got '8'"),
        (0, True, "must be a whole number greater than zero, got 0"),
        (-(10**400), True, "must be a whole number greater than zero, got -1e400"),
        (float("nan"), False, "must be a number greater than zero, got nan"),
        (0.5, False, "must be at least 2, got 0.5"),
        (10**6, True, "must be at most 65536, got 1000000"),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(value, whole, told):
    with pytest.raises(UserError) as caught:
        check_number("toy", "rows", value, whole=whole, low=2, high=65536)
    assert str(caught.value) == f"toy: rows {told}"
