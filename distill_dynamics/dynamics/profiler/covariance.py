"""The covariance of the tokens of one layer, added up over batches and ranks, and what it says of a set.

Letters: B images, P positions of one image, C channels, G groups of images, T tokens.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def groups(channels: int) -> int:
    """How many groups the images of a layer fall into: 8, and 4 above 128 channels.

    Each group costs C² numbers and one decomposition of C³ steps, which for wide layers is soon as dear as
    the forward pass. Above 768 channels (ViT-L, the last stages of a ResNet) there is one group: no error.
    """
    return 8 if channels <= 128 else 4 if channels <= 768 else 1


def half(image: int) -> int:
    """0 or 1: in which half of the images number i is. Of every two images 2j, 2j + 1 a hash of j says which.

    Classes take turns in a draw: by i mod 2, or any rule of one period, some would be in one half alone.
    """
    return (image + sha256(b"%d" % (image // 2)).digest()[0]) % 2


class TokenCovariance:
    """Covariance [C, C] of the tokens of all images of one layer, kept apart for G groups of images.

    Image i of the whole set belongs to group i mod G, whatever batch or rank it comes in; with `halves` each
    group is kept apart for the two halves of the images, too. What is held is G · C² numbers of float64, or
    twice as many, however many images there are: 113 MB for CaiT-S24's 24 layers. Products are float32 on a
    CPU, a third of the time of float64, once each batch's own mean is taken off; on a GPU that has float64
    they are float64. They are added up in float64 without cancellation (Chan et al., 1979).
    """

    def __init__(self, channels: int, halves: bool = False) -> None:
        self.groups, self.halves = groups(channels), halves
        count = self.groups * (2 if halves else 1)
        self.tokens = [0] * count
        self.mean = torch.zeros(count, channels, dtype=torch.float64)
        self.scatter = torch.zeros(count, channels, channels, dtype=torch.float64)

    def add(self, parts: Sequence[Tensor], first: int, step: int) -> None:
        """Take in the maps [B, C, H, W] of a batch, part by part; image j is number first + j · step."""
        taken: dict[int, list[Tensor]] = {}
        for x in parts:
            members: dict[int, list[int]] = {}
            for j in range(len(x)):
                image = first + j * step
                group = image % self.groups + (self.groups * half(image) if self.halves else 0)
                members.setdefault(group, []).append(j)
            for group, images in members.items():
                taken.setdefault(group, []).append(_rows(x, images).flatten(2).transpose(1, 2))
            first += len(x) * step
        for group, of_group in taken.items():
            tokens = precise(torch.cat(of_group).flatten(0, 1))
            mean = tokens.mean(0)
            tokens -= mean
            self._merge(group, len(tokens), mean.cpu().double(), (tokens.T @ tokens).cpu().double())

    def merge(self, other: Self) -> Self:
        """Take in what another rank has."""
        for group, tokens in enumerate(other.tokens):
            if tokens:
                self._merge(group, tokens, other.mean[group], other.scatter[group])
        return self

    def _merge(self, group: int, tokens: int, mean: Tensor, scatter: Tensor) -> None:
        before = self.tokens[group]
        step = mean - self.mean[group]
        self.tokens[group] += tokens
        self.mean[group].add_(step, alpha=tokens / self.tokens[group])
        self.scatter[group].add_(scatter)
        self.scatter[group].addr_(step, step, alpha=before * tokens / self.tokens[group])

    def measure(self, functions: list[Callable[[Tensor], Tensor]]) -> NDArray[np.float64]:
        """[functions, 2]: of each function of eigenvalues [..., C] the value, and its standard error.

        The error is that of a delete-a-group jackknife over images (Shao & Wu, 1989): with θ_g the value
        without group g, √((G - 1)/G Σ (θ_g - mean θ_g)²), over the groups that have images. NaN for fewer
        than two of them; both are NaN where a product of two values is beyond float32.
        """
        present = [group for group in range(self.groups) if any(self.tokens[group :: self.groups])]
        result = np.full((len(functions), 2), np.nan)
        if not present or not self.scatter.isfinite().all():
            return result
        whole = self._pooled(slice(None))
        left_out = present if len(present) > 1 else []
        matrices = [whole[1], *(self._without(group, *whole) for group in left_out)]
        eigenvalues = torch.stack([torch.linalg.eigvalsh(matrix) for matrix in matrices])
        for row, function in enumerate(functions):
            value, *left_out = function(eigenvalues).tolist()
            result[row, 0] = value
            if left_out:
                result[row, 1] = np.sqrt(np.var(left_out) * (len(left_out) - 1))
        return result

    def measure_halves(
        self, functions: list[Callable[[Tensor, Tensor, int], Tensor]], channels: int
    ) -> list[float]:
        """Each function of the covariances [C, C] of the two halves and a student's channels.

        NaN unless both halves have more tokens than the student has channels, so that there are as many
        components; 0 of a layer that has no more channels than the student.
        """
        if self.mean.shape[1] <= channels:
            return [0.0] * len(functions)
        halves = [self._pooled(slice(self.groups)), self._pooled(slice(self.groups, None))]
        if min(tokens for tokens, *_ in halves) <= channels or not self.scatter.isfinite().all():
            return [float("nan")] * len(functions)
        fitted, measured = (scatter / tokens for tokens, scatter, _ in halves)
        return [function(fitted, measured, channels).item() for function in functions]

    def _pooled(self, of: slice) -> tuple[int, Tensor, Tensor]:
        """Number of tokens of some groups, their scatter [C, C] and mean [C]."""
        tokens = torch.tensor(self.tokens[of], dtype=torch.float64)
        mean = (tokens / tokens.sum()) @ self.mean[of]
        deviation = self.mean[of] - mean
        scatter = self.scatter[of].sum(0) + (deviation.T * tokens) @ deviation
        return sum(self.tokens[of]), scatter, mean

    def _without(self, group: int, total: int, whole: Tensor, mean: Tensor) -> Tensor:
        """[C, C] scatter of the tokens of all images but one group's."""
        tokens, scatter, own = self._pooled(slice(group, None, self.groups))
        step = own - mean
        return (whole - scatter).addr_(step, step, alpha=-tokens * total / (total - tokens))

    def __getstate__(self) -> dict[str, Any]:
        """To another rank goes what has images: with as many ranks as groups each has one of them."""
        present = [group for group, tokens in enumerate(self.tokens) if tokens]
        return {
            "halves": self.halves,
            "tokens": self.tokens,
            "present": present,
            "mean": self.mean[present],
            "scatter": self.scatter[present],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["mean"].shape[1], state["halves"])  # type: ignore[misc]
        self.tokens = state["tokens"]
        self.mean[state["present"]] = state["mean"]
        self.scatter[state["present"]] = state["scatter"]


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    """x[rows] for rows that rise; a view where they are evenly spaced, as those of a group mostly are."""
    steps = {after - before for before, after in pairwise(rows)} or {1}
    return x[rows] if len(steps) > 1 else x[rows[0] : rows[-1] + 1 : steps.pop()]


def precise(x: Tensor) -> Tensor:
    """In the precision of the products."""
    return x.double() if x.device.type == "cuda" else x if x.dtype == torch.float64 else x.float()
