"""Gates: how much of a term's weight each of its pairs of blocks gets, by the teacher, before training.

Letters: L blocks of the teacher, P pairs of a term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.signature import signature
from distill_dynamics.errors import UserError

HELD = 1e-3
"""A capacity floor below which a block counts as held whole."""


class Gate(ABC):
    """A factor for each pair of blocks of a term, asked for once, before the first step of a training.

    A subclass of yours gives it by `__call__`. What it gives is kept in the checkpoint: a run that goes on
    has the same, and is refused where the class, its attributes or the pairs are others.
    """

    value_range: str = "global"
    """Of the entropy's bins in the Profile that it is given: "global", "layer" or "scaled"."""

    @abstractmethod
    def __call__(self, teacher: Profile, pairs: Sequence[tuple[int, int]]) -> ArrayLike:
        """Give [P] numbers, each finite and 0 or more, not all of them 0.

        Args:
            teacher: the Profile of all L blocks, on 1,024 training images as evaluation prepares them; with
                the floors at the width of the term's blocks of the student, where these have one width.
            pairs: of the term, [student block, teacher block], from 1.
        """


class PhaseGate(Gate):
    """σ((n - b) / max(w, 1)): blocks after the teacher's lowest entropy fade out.

    b is the pair's teacher block, n the block of the lowest entropy, and w the standard error of n, in blocks
    (`signature`): 1/2 at the lowest block. 1 for every pair, with a warning, where the entropy has no U.

    Args:
        value_range: of the entropy's bins. In the paper's, "global", a U may be one of the blocks' scale
            alone; "layer" and "scaled" take the scale out.

    Raises:
        UserError: another word for the range.
    """

    def __init__(self, value_range: str = "global") -> None:
        if value_range not in ("global", "layer", "scaled"):
            raise UserError(f"PhaseGate: value_range is global, layer or scaled, not {value_range!r}")
        self.value_range = value_range

    def __call__(self, teacher: Profile, pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
        """Give [P] numbers between 0 and 1."""
        shape = signature(teacher)
        if not shape.u_shaped:
            rank_zero_warn(
                f"PhaseGate: the teacher's entropy has no U on {len(teacher.entropy_images)} training images "
                f"(range {self.value_range}, lowest at block {shape.nadir} of {len(teacher.layers)}), so the "
                "gate is 1 for every pair"
            )
            return np.ones(len(pairs))
        blocks = np.array([block for _, block in pairs])
        return expit((shape.nadir - blocks) / max(shape.nadir_se, 1.0))


class CapacityGate(Gate):
    """1 - φ_b(k) / max φ(k): the more of a block the student cannot hold, the less it is asked for.

    φ_b(k) is the capacity floor (`dynamics/measures/capacity_floor.py`) of the pair's teacher block at the
    student's k channels, the maximum is over all blocks of the teacher: the block there has 0, one that can
    be held whole 1. 1 for every pair, with a warning, where the student can hold every block but for a
    thousandth of its variance.

    Raises:
        UserError: blocks of the student of several widths; floors that are not known.
    """

    def __call__(self, teacher: Profile, pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
        """Give [P] numbers from 0 to 1."""
        width, floor = teacher.student_width, teacher.curve("capacity_floor")
        if width is None:
            raise UserError(
                "CapacityGate takes one width of the student, and the term's blocks of it have several: make "
                "a term of each"
            )
        if not np.isfinite(floor).all():
            unknown = teacher.blocks[~np.isfinite(floor)]
            raise UserError(
                f"CapacityGate: the teacher's capacity floor at {width} channels is not known at block "
                f"{unknown[0]}: nothing varies there, or the training images have too few tokens"
            )
        if floor.max() < HELD:
            rank_zero_warn(
                f"CapacityGate: the student's {width} channels can hold every block of the teacher (capacity "
                f"floor at most {floor.max():.2g}), so the gate is 1 for every pair"
            )
            return np.ones(len(pairs))
        return 1 - floor[[block - 1 for _, block in pairs]] / floor.max()
