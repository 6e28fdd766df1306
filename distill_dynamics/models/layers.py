"""Which layers are meant, and which student layer meets which teacher layer.

Layers are numbered as people count them: 1 is the first block, -1 the last, "all" is every one. These
functions turn such numbers into plain numbers from 1 to the depth, and the paper's "first x, last y"
(Table 1) into pairs of them.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, TypeGuard

from distill_dynamics.errors import UserError

Pairs = Sequence[Sequence[int]] | Literal["all", "depth"]


def resolve_layers(layers: Sequence[int] | Literal["all"], depth: int, model: str) -> list[int]:
    """Give the layers meant, as numbers from 1 to `depth`, in the order asked for, repeats kept.

    `model` is only what the error calls the model: a `UserError` for a layer that does not exist.
    """
    if isinstance(layers, str):
        if layers != "all":
            raise UserError(f'layers are a list of numbers or "all", not "{layers}"')
        return list(range(1, depth + 1))
    if not isinstance(layers, Sequence):
        raise UserError(f'layers are a list of numbers or "all", not {layers!r}')
    return [_resolve(layer, depth, model) for layer in layers]


def pair_layers(
    student_depth: int,
    teacher_depth: int,
    first: int = 0,
    last: int = 0,
    pairs: Pairs | None = None,
) -> list[tuple[int, int]]:
    """Give the (student layer, teacher layer) pairs of one term, each a number from 1, shallow first.

    `first=x` pairs each of the first x student layers with the teacher layer of the same number;
    `last=y` each of the last y with the teacher layer of the same number from the end; both give
    x + y pairs. For a student of 12 layers and a teacher of 24, `first=2, last=1` is
    [(1, 1), (2, 2), (12, 24)].

    `pairs` names them instead: [[1, 1], [-1, -1]], in the order given, where one layer may serve in
    several pairs; "all", each layer with the one of its number, for models equally deep; or "depth", each
    student layer i of S with the teacher layer i · T / S of T, rounded (a half upwards) and at least 1. Last
    meets last; of a teacher less deep, one layer serves in several pairs.

    Raises `UserError` for a layer that does not exist, a pair named twice, a choice that needs one
    layer twice or more layers than there are, no pair at all, and `pairs` beside `first` or `last`.
    """
    for name, count in {"first": first, "last": last}.items():
        if not _is_whole(count) or count < 0:
            raise UserError(f"{name} is a number of layers, 0 or more, not {count!r}")
    if pairs is not None:
        if first or last:
            raise UserError(f"pairs and first ({first}) or last ({last}) exclude each other: give one way")
        return _explicit_pairs(pairs, student_depth, teacher_depth)

    if first + last == 0:
        raise UserError("a term needs at least one pair of layers: give first, last or pairs")
    for model, depth in {"student": student_depth, "teacher": teacher_depth}.items():
        if first + last > depth:
            raise UserError(
                f"first {first} and last {last} need {first + last} different layers: the {model} has {depth}"
            )
    from_the_start = [(i, i) for i in range(1, first + 1)]
    from_the_end = [(student_depth + 1 - i, teacher_depth + 1 - i) for i in range(last, 0, -1)]
    return from_the_start + from_the_end


def _explicit_pairs(pairs: Pairs, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
    if isinstance(pairs, str):
        if pairs == "depth":
            # i · T / S + 1 / 2, rounded down in whole numbers: the same on every machine.
            return [
                (i, max(1, (2 * i * teacher_depth + student_depth) // (2 * student_depth)))
                for i in range(1, student_depth + 1)
            ]
        if pairs != "all":
            raise UserError(f'pairs are a list such as [[1, 1], [-1, -1]], "all" or "depth", not "{pairs}"')
        if student_depth != teacher_depth:
            raise UserError(
                'pairs "all" needs models equally deep, and "depth" does not: '
                f"the student has {student_depth} layers, the teacher {teacher_depth}"
            )
        return [(i, i) for i in range(1, student_depth + 1)]

    if not isinstance(pairs, Sequence):
        raise UserError(f'pairs are a list such as [[1, 1], [-1, -1]], "all" or "depth", not {pairs!r}')
    resolved: list[tuple[int, int]] = []
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise UserError(f"a pair is [student layer, teacher layer], such as [1, 1], not {pair!r}")
        student_layer = _resolve(pair[0], student_depth, "the student")
        teacher_layer = _resolve(pair[1], teacher_depth, "the teacher")
        if (student_layer, teacher_layer) in resolved:
            raise UserError(f"the pair {list(pair)} is named twice: [{student_layer}, {teacher_layer}]")
        resolved.append((student_layer, teacher_layer))
    if not resolved:
        raise UserError("a term needs at least one pair of layers: pairs is empty")
    return resolved


def _resolve(layer: object, depth: int, model: str) -> int:
    if not _is_whole(layer):
        raise UserError(f"a layer is a whole number such as 1 or -1, not {layer!r}")
    if layer == 0 or abs(layer) > depth:
        raise UserError(
            f"layer {layer} does not exist: {model} has {depth} layers (1 to {depth}, or -{depth} to -1)"
        )
    return int(layer) if layer > 0 else depth + 1 + int(layer)


def _is_whole(number: object) -> TypeGuard[int]:
    return isinstance(number, Integral) and not isinstance(number, bool)
