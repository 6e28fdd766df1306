"""What a probe costs: beside the forward pass that it needs, beside reading the activations, beside numpy."""

import itertools
from collections.abc import Iterator

import numpy as np
import timm
import torch
from table import Row, row
from torch import Tensor
from turns import by_turns

from distill_dynamics.dynamics import (
    activation_magnitude,
    channel_entropy,
    channel_spectrum,
    profile_model,
)
from distill_dynamics.dynamics.profiler import compare_models
from distill_dynamics.models.backbone import Backbone


def rows(small: bool) -> Iterator[Row]:
    """CaiT-S24 and 32 images of 224 px, or two blocks of a small ViT and 4 images."""
    torch.manual_seed(0)
    vit = {}
    if small:
        vit = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
        backbone, images = (
            Backbone("deit_tiny_patch16_224", timm_kwargs=vit).eval(),
            torch.randn(4, 3, 28, 28),
        )
    else:
        backbone, images = Backbone("cait_s24_224").eval(), torch.randn(32, 3, 224, 224)
    model = timm.create_model(backbone.name, **vit).eval()
    rounds = 2 if small else 7
    name = f"{backbone.name}, {len(images)} images: "

    @torch.no_grad()
    def bare() -> None:
        model(images)

    @torch.no_grad()
    def bare_in_parts() -> None:
        for part in images.split(8):
            model(part)

    def probe() -> None:
        profile_model(backbone, images)

    whole, parts, probed = by_turns([bare, bare_in_parts, probe], rounds)
    yield row(f"{name}probe ÷ timm's forward", probed, whole, unit="s")
    what = f"{name}probe ÷ timm's forward in parts of 8 images, as the probe has it"
    yield row(what, probed, parts, 0.75, unit="s")

    student = Backbone("deit_tiny_patch16_224", timm_kwargs=vit).eval()

    @torch.no_grad()
    def both() -> None:
        for part in images.split(8):
            student(part, "all", logits=False)
            backbone(part, "all", logits=False)

    def compare() -> None:
        compare_models(student, backbone, images, images)

    compared, passes = by_turns([compare, both], rounds)
    what = f"{name}every pair of blocks with a student's ÷ the forward passes of both in parts of 8 images"
    yield row(what, compared, passes, unit="s")

    with torch.no_grad():
        maps = backbone(images, "all", logits=False).maps
    limits = min(float(x.min()) for x in maps), max(float(x.max()) for x in maps)

    def measures() -> None:
        for x in maps:
            channel_entropy(x, limits)
            channel_spectrum(x)
            activation_magnitude(x)

    def one_pass() -> None:
        for x in maps:
            x.abs().sum()

    measured, read = by_turns([measures, one_pass], 2 * rounds)
    yield row(f"{name}entropy + spectrum + magnitude ÷ A.abs().sum()", measured, read, 25)

    def numpys() -> None:
        for x in maps:
            in_numpy(x, limits)

    measured, slow = by_turns([measures, numpys], 2 if small else 3)
    what = f"{name}numpy (loop over positions, np.fft) ÷ ours, same numbers"
    yield row(what, slow, measured, 40, at_least=True, unit="s")


def in_numpy(x: Tensor, limits: tuple[float, float], bins: int = 100) -> tuple[float, np.ndarray, float]:
    """Mean entropy, spectrum and magnitude of a map [B, C, H, W] as the equations are written."""
    a = x.numpy()
    batch, channels, height, width = a.shape
    entropy = np.empty((batch, height, width))
    for b, h, w in itertools.product(range(batch), range(height), range(width)):
        count, _ = np.histogram(a[b, :, h, w], bins, limits)
        p = count[count > 0] / channels
        entropy[b, h, w] = -(p * np.log2(p)).sum()
    spectrum = np.abs(np.fft.fft(a, axis=1) / channels).mean((0, 2, 3))
    return entropy.mean(), spectrum, np.abs(a).mean()
