"""JPEG files like photographs, and the loaders of a training that read them: this tool's and timm's."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader

from distill_dynamics.data import ImageFolder
from distill_dynamics.data.image_folder import RECIPE


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls with frequency as a photograph's does, and with its bytes a pixel."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    channels = []
    for strength in (55, 20, 20):  # brightness, and two colours that change less
        noise = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.2
        noise[0, 0] = 0
        field = np.fft.irfft2(noise, (height, width))
        channels.append(128 + strength * field / field.std())
    pixels = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "YCbCr").convert("RGB")


def write_images(folder: Path, width: int, height: int, count: int) -> float:
    """`count` training and 2 validation images, odd and even ones a class each; mean size of a file in KB."""
    rng = np.random.default_rng(0)
    sizes = []
    for number in range(count + 2):
        path = folder / ("train" if number < count else "val") / str(number % 2) / f"{number:05d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(rng, width, height).save(path, quality=90)
        sizes.append(path.stat().st_size / 1000)
    return statistics.mean(sizes)


def drawn(loader: Iterable[object]) -> Callable[[], None]:
    """Draws an epoch, which is as many images for every contestant."""

    def draw() -> None:
        for _ in loader:
            pass

    return draw


def timms(folder: Path, batch: int, workers: int) -> object:
    """timm's loader as its training script makes it: bytes from the workers, normalised and erased after."""
    return create_loader(
        ImageDataset(str(folder / "train")),
        (3, 224, 224),
        batch,
        is_training=True,
        interpolation="bicubic",
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=workers > 0,
        **RECIPE,
    )


def ours(folder: Path, batch: int, workers: int) -> object:
    """The same files and transforms."""
    data = ImageFolder(str(folder), batch_size=batch, num_workers=workers, seed=0)
    data.setup("fit")
    return data.train_dataloader()
