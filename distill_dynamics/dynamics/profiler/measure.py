"""A backbone and images → Profile.

Letters: N images in all, C channels, H W grid, L layers.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.profiler.covariance import TokenCovariance
from distill_dynamics.dynamics.profiler.each import each
from distill_dynamics.dynamics.profiler.moments import Moments
from distill_dynamics.dynamics.profiler.passes import BINNED, PLAIN, FeatureModel, ForwardPasses
from distill_dynamics.dynamics.profiler.ranges import ValueRange, bin_edges, given_range
from distill_dynamics.dynamics.profiler.ranks import interleave, on_every_rank
from distill_dynamics.dynamics.statistics import STATISTICS
from distill_dynamics.errors import UserError
from distill_dynamics.models.isolated import isolated
from distill_dynamics.models.layers import resolve_layers


class Options(TypedDict, total=False):
    """What `profile_model` and `profile_ranges` take beyond what is measured; see there."""

    epoch: int | None
    probe_id: str
    probe_indices: ArrayLike | None
    group: dist.ProcessGroup | None
    progress: bool


def profile_model(
    backbone: FeatureModel,
    images: Tensor | Iterable,
    *,
    bins: int = 100,
    value_range: ValueRange = "global",
    layers: Sequence[int] | Literal["all"] = "all",
    batch_size: int = 32,
    student_width: int | None = None,
    **options: Unpack[Options],
) -> Profile:
    """Measure spectrum and all of `STATISTICS` (entropy, magnitude, ...) of every layer over all images.

    The result is that of the whole set in one batch, round-off aside, but the images stream: held at
    any moment are the activations of one batch, and one number an image, layer and measure.

    What it costs: the measures take a fourteenth of a forward pass of CaiT-S24 on a CPU. The bins must span
    all images before the first value is counted, so unless `value_range` is two numbers the images are run
    through the model **twice** when they come in several batches. They are run once when they fit in
    one batch, whose activations are kept (the default: 32 probe images). On a CPU a batch goes through
    the model in parts of 8 images of 224 px.

    The model runs in eval mode, float32 (its own precision if its parameters have another), without
    autocast, gradients or compilation. Training flags and the random states of Python, numpy and torch
    are put back, also after an error.

    Args:
        backbone: a `Backbone`.
        images: normalised for this backbone. A tensor [N, C_in, H_in, W_in], or an iterable of batches:
            tensors, or (images, targets) pairs, whose images with target -100 are left out. An iterable
            may be asked for its batches twice and must give the same ones, so no shuffling and no random
            augmentation; an iterator that can be read only once will do for a single batch or pass.
        bins: number of equal bins of the entropy.
        value_range: the range the bins divide. "global" is the paper's: lowest and highest value over
            all layers and images, so that one outlier widens every layer's bins. "layer": each layer's
            own. "scaled": one range for all layers, each divided by its magnitude first, which leaves
            of the entropy what is not the layer's scale. Two numbers (lo, hi): these, for every layer,
            with values outside counted in the bins at the ends and their fraction kept as
            `Profile.clipped`.
        layers: "all", or numbers from 1, negative from the end; the Profile has them in depth order.
        batch_size: images whose activations are held at a time, where `images` is a tensor.
        student_width: channels of a student: measure the capacity floor and the correlation floor at it,
            `Profile.curve("capacity_floor")`, on one half of the images with principal components of the
            other. That takes another ninth of the forward pass of CaiT-S24 on 32 images, and twice the memory
            for covariances. Of few images they are too high, see `measures/capacity_floor.py`; NaN where a
            half has no more tokens than the student has channels, and so of one image.
        epoch, probe_id, probe_indices: passed on to the Profile; `probe_indices` is [N].
        group: a process group whose ranks all make this call. `images` are then this rank's share,
            image i of the whole set being on rank i mod world size, in order; a share may be empty. Every
            rank returns the Profile of the whole set, and an error on one rank is raised on all.
        progress: show a bar where there is more than one batch.

    Raises:
        UserError: NaN or Inf in a layer's output, which it names; no images; images of a wrong shape or
            kind; images that cannot be read a second time, or differ then; a range or a width that is none.
    """
    (profile,) = profile_ranges(
        backbone,
        images,
        value_ranges=[value_range],
        bins=bins,
        layers=layers,
        batch_size=batch_size,
        student_widths=[] if student_width is None else [student_width],
        **options,
    )
    return profile


def profile_ranges(
    backbone: FeatureModel,
    images: Tensor | Iterable,
    *,
    value_ranges: Sequence[ValueRange],
    bins: int = 100,
    layers: Sequence[int] | Literal["all"] = "all",
    batch_size: int = 32,
    student_widths: Sequence[int] = (),
    epoch: int | None = None,
    probe_id: str = "",
    probe_indices: ArrayLike | None = None,
    group: dist.ProcessGroup | None = None,
    progress: bool = False,
) -> list[Profile]:
    """`profile_model` under several value ranges: a Profile each, for the forward passes of one.

    The Profiles differ in entropy, `value_range`, `range_mode` and `clipped` alone. With several widths of
    students there is a Profile for each of them too, range by range; these differ in the floors alone.
    Arguments and errors are those of `profile_model`.
    """
    if bins < 1:
        raise UserError(f"bins must be at least 1, not {bins}")
    numbers = sorted(set(resolve_layers(layers, len(backbone.layers), backbone.name)))
    if not numbers:
        raise UserError(
            f"{backbone.name}: no layers to analyse (layers: {layers!r}, it has {backbone.layers})"
        )
    if not value_ranges:
        raise UserError("value_ranges names no range: give at least one")
    for width in student_widths:
        if width < 1:
            raise UserError(f"student_width is a student's number of channels, 1 or more, not {width}")
    edges = [given_range(value_range, len(numbers)) for value_range in value_ranges]
    given = [limits for limits in edges if limits is not None]
    modes = [
        "explicit" if limits is not None else str(r) for limits, r in zip(edges, value_ranges, strict=True)
    ]
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    again = len(given) < len(edges)
    halves = bool(student_widths)
    passes = ForwardPasses(backbone, images, batch_size, numbers, bins, progress, rank, world, halves, again)

    with isolated(backbone):
        shares = on_every_rank(lambda: passes.measure(given), group)
        counts = [len(share.plain) for share in shares]
        count = sum(counts)
        if count == 0:
            raise UserError(f"{backbone.name}: there are no images to analyse")
        if counts != [len(range(rank, count, len(counts))) for rank in range(len(counts))]:
            raise UserError(
                f"{backbone.name}: image i of {count} must be on rank i mod {len(counts)}, but the ranks "
                f"have {counts} images"
            )
        plain = interleave([share.plain for share in shares])
        curves = {one.name: plain[..., i] for i, one in enumerate(PLAIN)}
        lowest, highest = (
            np.min([share.low for share in shares], axis=0),
            np.max([share.high for share in shares], axis=0),
        )
        measured = [
            bin_edges(lowest, highest, curves["magnitude"].mean(axis=0), mode)
            for mode in modes
            if mode != "explicit"
        ]
        seconds = on_every_rank(lambda: passes.entropies(measured), group) if measured else []

    if probe_indices is not None and np.shape(probe_indices) != (count,):
        raise UserError(f"probe_indices has shape {np.shape(probe_indices)} and there are {count} images")
    spectra = [reduce(Moments.add, parts) for parts in zip(*(share.spectra for share in shares), strict=True)]
    layers_of = zip(*(share.covariances for share in shares), strict=True)
    covariances = [reduce(TokenCovariance.merge, parts) for parts in layers_of]
    values, errors = _of_the_set(covariances)

    # Each of these three has one entry a range, in the order of value_ranges.
    first = iter([*np.moveaxis(interleave([share.binned for share in shares]), 2, 0)])
    second = iter([*np.moveaxis(interleave(seconds), 2, 0)] if seconds else [])
    binned = [next(first if mode == "explicit" else second) for mode in modes]
    outside = iter([*interleave([share.outside for share in shares]).mean(axis=0).T])
    clipped = [next(outside) if mode == "explicit" else np.zeros(len(numbers)) for mode in modes]
    found = iter(measured)
    limits = [next(found) if known is None else known for known in edges]
    widths: list[tuple[int | None, dict[str, FloatArray]]] = [
        (width, _of_halves(covariances, width)) for width in student_widths
    ] or [(None, {})]
    return [
        Profile(
            model=backbone.name,
            epoch=epoch,
            layers=[backbone.layers[number - 1] for number in numbers],
            curves=curves | values | floors | {one.name: binned[i][..., j] for j, one in enumerate(BINNED)},
            errors=errors,
            spectrum=[moments.mean for moments in spectra],
            spectrum_se=[moments.standard_error() for moments in spectra],
            value_range=limits[i],
            range_mode=mode,
            clipped=clipped[i],
            bins=bins,
            probe_id=probe_id,
            probe_indices=None if probe_indices is None else np.asarray(probe_indices),
            blocks=np.array(numbers),
            student_width=width,
        )
        for i, mode in enumerate(modes)
        for width, floors in widths
    ]


def _of_the_set(
    covariances: Sequence[TokenCovariance],
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Statistics of all images at once by name, [L] each, and the standard errors of those that have one."""
    listed = [one for one in STATISTICS if one.kind == "set"]
    functions = [one.load() for one in listed]
    measured = np.stack(each(lambda covariance: covariance.measure(functions), covariances))
    values, errors = (
        {one.name: measured[:, row, column] for row, one in enumerate(listed)} for column in (0, 1)
    )
    return values, {one.name: errors[one.name] for one in listed if not one.whole}


def _of_halves(covariances: Sequence[TokenCovariance], width: int) -> dict[str, FloatArray]:
    """Statistics of two halves of the images at a student's width by name, [L] each."""
    listed = [one for one in STATISTICS if one.kind == "halves"]
    functions = [one.load() for one in listed]
    measured = np.array(each(lambda covariance: covariance.measure_halves(functions, width), covariances))
    return {one.name: measured[:, row] for row, one in enumerate(listed)}
