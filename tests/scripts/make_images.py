"""Makes a folder of images to try things on: a class is a direction, a width and colours of stripes.

python tests/scripts/make_images.py DIR [CLASSES [TRAIN [VAL]]]

DIR/train/<class>/<image>.jpg and DIR/val: TRAIN and VAL images a class, of several sizes.
"""

import colorsys
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def image(label: int, classes: int, rng: np.random.Generator) -> Image.Image:
    """One image of a class: stripes with a random place, size and noise."""
    width, height = rng.integers(240, 320, 2)
    y, x = np.mgrid[:height, :width] / 240
    angle = np.pi * label / classes + rng.normal(0, 0.1)
    waves = 4 + 3 * (label % 4) + rng.normal(0, 0.3)
    across = (x * np.cos(angle) + y * np.sin(angle)) * waves + rng.uniform()
    first, second = (
        np.array(colorsys.hsv_to_rgb((label * step / classes + rng.normal(0, 0.03)) % 1, 0.8, value))
        for step, value in ((7, 0.9), (3, 0.5))
    )
    share = (0.5 + 0.5 * np.sin(2 * np.pi * across))[..., None]
    pixels = 255 * (share * first + (1 - share) * second) + rng.normal(0, 25, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make(root: Path, classes: int = 40, train: int = 30, val: int = 10) -> Path:
    """The folder, in ImageNet's layout."""
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"stripes_{label:02d}"
            folder.mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([label, number, split == "val"])
                image(label, classes, rng).save(folder / f"{number:03d}.jpg", quality=90)
    return root


if __name__ == "__main__":
    make(Path(sys.argv[1]), *map(int, sys.argv[2:]))
