from fractions import Fraction
from math import floor

import numpy as np
import pytest

from distill_dynamics.errors import UserError
from distill_dynamics.models.layers import pair_layers, resolve_layers


def test_layers_count_from_one_and_from_the_end():
    blocks = [f"blocks.{i}" for i in range(24)]
    for asked in ([1, 2, 24], [-1, -24], [5, -3, 5, 1], []):
        python_indices = [i - 1 if i > 0 else i for i in asked]
        resolved = resolve_layers(asked, 24, "cait_s24_224")
        assert [blocks[i - 1] for i in resolved] == [blocks[i] for i in python_indices]


def test_all_layers():
    assert resolve_layers("all", 3, "cait") == [1, 2, 3]


def test_layers_may_be_any_sequence_of_any_integers():
    assert resolve_layers((np.int64(2), -1), 12, "deit") == [2, 12]
    assert all(type(i) is int for i in resolve_layers([np.int64(2), np.int64(-1)], 12, "deit"))


@pytest.mark.parametrize("layer", [0, 13, -13])
def test_a_layer_that_does_not_exist(layer):
    with pytest.raises(UserError) as error:
        resolve_layers([1, layer], 12, "cait")
    assert str(error.value) == f"layer {layer} does not exist: cait has 12 layers (1 to 12, or -12 to -1)"


@pytest.mark.parametrize("layers", ["last", "1", [1.0], ["1"], [True], [[1]], [None], None, 3])
def test_layers_that_are_no_numbers(layers):
    with pytest.raises(UserError) as error:
        resolve_layers(layers, 12, "cait")
    assert "\n" not in str(error.value)


# Table 1 of the paper, for its student of 12 blocks and its teacher of 24.
@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1, 0, [(1, 1)]),
        (0, 1, [(12, 24)]),
        (1, 1, [(1, 1), (12, 24)]),
        (2, 1, [(1, 1), (2, 2), (12, 24)]),
        (2, 6, [(1, 1), (2, 2), (7, 19), (8, 20), (9, 21), (10, 22), (11, 23), (12, 24)]),
        (0, 8, [(5, 17), (6, 18), (7, 19), (8, 20), (9, 21), (10, 22), (11, 23), (12, 24)]),
    ],
)
def test_first_and_last_as_in_the_paper(first, last, expected):
    assert pair_layers(12, 24, first=first, last=last) == expected


def test_every_block_can_be_paired():
    assert pair_layers(4, 4, first=1, last=3) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert pair_layers(4, 4, pairs="all") == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert pair_layers(4, 9, first=4) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert pair_layers(4, 9, last=4) == [(1, 6), (2, 7), (3, 8), (4, 9)]


@pytest.mark.parametrize("student", range(1, 14))
@pytest.mark.parametrize("teacher", range(1, 27))
def test_pairs_by_depth_are_each_student_block_at_its_share_of_the_teachers_depth(student, teacher):
    share = [Fraction(i * teacher, student) for i in range(1, student + 1)]
    halves_up = [max(1, floor(at + Fraction(1, 2))) for at in share]
    assert pair_layers(student, teacher, pairs="depth") == [*enumerate(halves_up, start=1)]
    assert halves_up[-1] == teacher


def test_pairs_by_depth_of_the_papers_models():
    assert pair_layers(12, 24, pairs="depth") == [(i, 2 * i) for i in range(1, 13)]
    assert pair_layers(4, 6, pairs="depth") == [(1, 2), (2, 3), (3, 5), (4, 6)]  # 1.5 and 4.5 go up
    assert pair_layers(12, 3, pairs="depth")[:2] == [(1, 1), (2, 1)]


def test_explicit_pairs_keep_their_order_and_may_share_a_layer():
    assert pair_layers(12, 24, pairs=[[-1, -1], [3, 6], (3, 7)]) == [(12, 24), (3, 6), (3, 7)]


@pytest.mark.parametrize(
    ("depths", "choice", "told"),
    [
        ((12, 24), {}, "at least one pair"),
        ((12, 24), {"pairs": []}, "at least one pair"),
        ((12, 24), {"first": 7, "last": 6}, "the student has 12"),
        ((12, 24), {"first": 13}, "the student has 12"),
        ((12, 6), {"first": 4, "last": 4}, "the teacher has 6"),
        ((12, 24), {"first": -1}, "first is a number of layers, 0 or more, not -1"),
        ((12, 24), {"last": 1.5}, "last is a number of layers, 0 or more, not 1.5"),
        ((12, 24), {"first": 1, "pairs": [[1, 1]]}, "exclude each other"),
        ((12, 24), {"last": 1, "pairs": "all"}, "exclude each other"),
        ((12, 24), {"first": 1, "pairs": "depth"}, "exclude each other"),
        ((12, 24), {"pairs": [[13, 1]]}, "layer 13 does not exist: the student has 12 layers"),
        ((12, 24), {"pairs": [[1, -25]]}, "layer -25 does not exist: the teacher has 24 layers"),
        ((12, 24), {"pairs": [[1, 0]]}, "layer 0 does not exist: the teacher has 24 layers"),
        ((12, 24), {"pairs": [[12, 24], [-1, -1]]}, "named twice"),
        ((12, 24), {"pairs": [[1, 2, 3]]}, "a pair is [student layer, teacher layer]"),
        ((12, 24), {"pairs": [1, 2]}, "a pair is [student layer, teacher layer]"),
        ((12, 24), {"pairs": ["11"]}, "a pair is [student layer, teacher layer]"),
        ((12, 24), {"pairs": 3}, "pairs are a list"),
        ((12, 24), {"pairs": "last"}, "pairs are a list"),
        ((12, 24), {"pairs": "all"}, "the student has 12 layers, the teacher 24"),
    ],
)
def test_wrong_choices_are_told_in_one_line(depths, choice, told):
    with pytest.raises(UserError) as error:
        pair_layers(*depths, **choice)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
