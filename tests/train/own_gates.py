"""Gates of a user's own."""

from distill_dynamics.train.gates import Gate

KEPT = []
"""What `Magnitudes` was given, in the order of its calls."""


class Numbers(Gate):
    """Those that it is told."""

    def __init__(self, numbers: list[float]):
        self.numbers = numbers

    def __call__(self, teacher, pairs):
        return self.numbers


class Magnitudes(Gate):
    """Of the teacher's blocks, by the largest."""

    def __init__(self):
        self.calls = []

    def __call__(self, teacher, pairs):
        KEPT.append((teacher, pairs))
        self.calls.append(len(pairs))
        self.given = len(pairs)  # no setting, though it is an attribute
        return [teacher.magnitude[block - 1] / teacher.magnitude.max() for _, block in pairs]


class Fails(Gate):
    def __call__(self, teacher, pairs):
        return teacher.curves["no such curve"]
