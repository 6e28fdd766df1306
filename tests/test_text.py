"""Numbers as a reader sees them."""

import math

import pytest

from distill_dynamics.text import counted, number, signed, with_error


@pytest.mark.parametrize("value", [0.0, -0.0, 0.004, -0.004, -1e-12])
def test_what_rounds_to_zero_has_no_sign(value):
    assert signed(value) == number(value, 2) == "0.00"
    assert with_error(signed(value), 0.003, 2) == "0.00 ± 0.00"


def test_other_numbers_keep_theirs():
    assert [signed(value) for value in (-1.005, -0.006, 0.006, 12)] == ["-1.00", "-0.01", "+0.01", "+12.00"]
    assert [number(value, 1) for value in (-0.06, 0.04, math.nan)] == ["-0.1", "0.0", "–"]
    assert signed(math.nan) == "–"


def test_one_is_singular():
    assert [counted(n, "epoch") for n in (0, 1, 2, "1 of 3")] == [
        "0 epochs",
        "1 epoch",
        "2 epochs",
        "1 of 3 epochs",
    ]
