"""Two models on the same images: every layer of the one beside every layer of the other.

Letters: N images, C and D channels, H W grid, T tokens, L and M layers of the two models.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from distill_dynamics.dynamics.profile import FloatArray
from distill_dynamics.dynamics.profiler.covariance import precise
from distill_dynamics.dynamics.profiler.passes import FeatureModel, split_for_pass
from distill_dynamics.dynamics.profiler.ranks import on_every_rank
from distill_dynamics.dynamics.statistics import STATISTICS
from distill_dynamics.errors import UserError
from distill_dynamics.losses.maps import match_grids
from distill_dynamics.models.isolated import isolated

Grid = tuple[int, int]


def compare_models(
    model: FeatureModel,
    other: FeatureModel,
    images: Tensor,
    other_images: Tensor,
    *,
    most: int = 32,
    group: dist.ProcessGroup | None = None,
) -> dict[str, FloatArray]:
    """Measure every pair of layers by all of `STATISTICS` that are of a pair of models, by name [L, M].

    Tokens are the positions of the maps; of two grids the larger is average-pooled to the smaller, as the
    losses do it. Both models run as in `profile_model`, which says what is put back afterwards; it costs a
    forward pass of each, and Σ C · Σ D multiplications a token: for DeiT-Tiny beside CaiT-S24 on 32 images
    of 224 px another 0.3 of their passes, on one thread of a CPU.

    Args:
        model, other: two backbones.
        images: [N, ...] normalised for `model`.
        other_images: [N, ...] the same images, normalised for `other`.
        most: the first so many of the images are looked at. Their maps of both models are held at once.
        group: a process group whose ranks all make this call with their share of the images, see
            `profile_model`; the result is that of one process, round-off aside.

    Raises:
        UserError: the two have not as many images.
    """
    if len(images) != len(other_images):
        raise UserError(f"two models are compared on {len(images)} and {len(other_images)} images")
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    share = len(range(rank, most, world))
    maps: list[list[Tensor]] = []

    def run() -> None:
        maps.extend(_maps(*one) for one in ((model, images[:share]), (other, other_images[:share])))

    with isolated(model), isolated(other):
        on_every_rank(run, group)
        mine, theirs = maps
        return _measure(mine, theirs, lambda x: _sum(x, group))


def _maps(model: FeatureModel, images: Tensor) -> list[Tensor]:
    """L maps [n, C, H, W]; a rank without images has the shapes of the others."""
    shown = images if len(images) else images.new_zeros(1, *images.shape[1:])
    layers = range(1, len(model.layers) + 1)
    parts = [model(some, layers=layers, logits=False).maps for some in split_for_pass(model, shown)]
    return [torch.cat(of_layer)[: len(images)] for of_layer in zip(*parts, strict=True)]


def _measure(
    maps: list[Tensor], others: list[Tensor], total: Callable[[Tensor], Tensor]
) -> dict[str, FloatArray]:
    functions = {one.name: one.load() for one in STATISTICS if one.kind == "pair"}
    values: dict[str, list[Tensor]] = {name: [] for name in functions}
    own: dict[tuple[int, Grid], tuple[Tensor, Tensor]] = {}  # tokens and their scatter
    for y_map in others:
        theirs: dict[Grid, tuple[Tensor, Tensor]] = {}
        for layer, x_map in enumerate(maps):
            x_pooled, y_pooled = match_grids(x_map, y_map)
            grid: Grid = (x_pooled.shape[2], x_pooled.shape[3])
            if (layer, grid) not in own:
                own[layer, grid] = _scattered(x_pooled, total)
            if grid not in theirs:
                theirs[grid] = _scattered(y_pooled, total)
            (x, xx), (y, yy) = own[layer, grid], theirs[grid]
            xy = total(x.T @ y.to(x))
            for name, function in functions.items():
                values[name].append(function(xx, xy, yy))
    return {
        name: torch.stack(of_pairs).double().cpu().numpy().reshape(len(others), len(maps)).T
        for name, of_pairs in values.items()
    }


def _scattered(x: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Map [n, C, H, W] → tokens [T, C] about the mean over all ranks, and their scatter [C, C]."""
    tokens = precise(x.permute(0, 2, 3, 1).flatten(0, 2))
    summed = total(torch.cat([tokens.sum(0), tokens.new_tensor([len(tokens)])]))
    tokens = tokens - summed[:-1] / summed[-1]
    return tokens, total(tokens.T @ tokens)


def _sum(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(x, group=group)
    return x
