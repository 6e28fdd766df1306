"""timm's transforms, cut in two: PIL image → uint8 pixels, and what follows on normalised images.

The cut lets a batch be normalised in one step, and gives the probe set pixels before normalisation.

Letters: B batch, C channels, H W grid.
"""

import difflib
import inspect
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform
from timm.data.transforms import (
    MaybePILToTensor,
    MaybeToTensor,
    RandomResizedCropAndInterpolation,
    str_to_interp_mode,
)
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from distill_dynamics.data.sources import FULL_SIZE
from distill_dynamics.errors import UserError

# The training keywords of create_transform, less those the data module sets itself, those of another
# image format (NaFlex) and re_num_splits, which acts on batches only.
_OURS = {"img_size", "mean", "std", "use_prefetcher", "normalize", "separate", "re_num_splits", "naflex"}
_OURS |= {"patch_size", "max_seq_len", "patchify", "patchify_channels_last"}
AUGMENT_KEYS = sorted(
    (set(inspect.signature(transforms_imagenet_train).parameters) | {"no_aug"})
    & set(inspect.signature(create_transform).parameters) - _OURS
)
"""What `augment` may hold: the keywords of `timm.data.create_transform` that shape training."""

FLIP = {"hflip": 0.5, "color_jitter": None}
"""Mirroring alone, for small images (with crop padding)."""


class ReducedCrop:
    """timm's random-resized crop, for an image that may have been decoded at a fraction of its size.

    The box is drawn on the whole image from the same random numbers, so it is timm's box; only the pixels
    come from the smaller decoding, at which the box is never smaller than the output. An image that was
    decoded whole gives timm's pixels.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation):
        self.crop = crop

    def needed(self, size: tuple[int, int]) -> tuple[float, float]:
        """The (width, height) at which the box that is drawn next is as large as the output.

        Draws that box: `__call__` finds the same one if the generators are set back to where they were.
        """
        _, _, height, width = self._box(size)
        out_height, out_width = self.crop.size
        return size[0] * out_width / width, size[1] * out_height / height

    def __call__(self, image: Image.Image) -> Image.Image:
        """The box of the image, resized."""
        size = image.info[FULL_SIZE]
        if size == image.size:
            return self.crop(image)
        top, left, height, width = self._box(size)
        how = self.crop.interpolation
        how = random.choice(how) if isinstance(how, (tuple, list)) else how
        # Not the ratio of the sizes, which a decoder rounds up: that would shift the box by most of a pixel.
        scale = round(max(size) / max(image.size))
        box = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
        return image.resize(self.crop.size[::-1], functional.pil_modes_mapping[how], box)

    def _box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height, width."""
        of_size = torch.empty(1, size[1], size[0], device="meta")  # timm asks an image for no more
        return self.crop.get_params(of_size, self.crop.scale, self.crop.ratio)

    def __repr__(self) -> str:
        return f"ReducedCrop({self.crop!r})"


@lru_cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, ...]:
    """255, [C,1,1] means and [C,1,1] deviations on a device: a step is not to wait for them."""
    of_channel = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    return torch.tensor(255.0, device=device), *of_channel


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B,C,H,W] → float32 [B,C,H,W], (pixels/255 - mean) / std for each channel.

    Grey pixels are repeated for a `mean` of more channels.

    To the last bit the same on every device: all divisors are tensors, as by a plain number CUDA would
    multiply by its reciprocal.
    """
    whole, means, deviations = _constants(tuple(mean), tuple(std), pixels.device)
    images = pixels.to(torch.float32).div_(whole)
    if images.shape[1] == 1 < len(means):
        images = images.repeat(1, len(means), 1, 1)
    return images.sub_(means).div_(deviations)


def check_augment(augment: Mapping[str, Any]) -> None:
    """Raises UserError for a key that is none of `AUGMENT_KEYS`."""
    for key in augment:
        if key not in AUGMENT_KEYS:
            near = difflib.get_close_matches(key, AUGMENT_KEYS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(AUGMENT_KEYS)}"
            raise UserError(f"data.augment: '{key}' is not an augmentation setting of timm; {hint}")


def train_transforms(
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_padding: int,
    augment: Mapping[str, Any],
    reduced_decode: bool = False,
) -> tuple[transforms.Compose, transforms.Compose]:
    """timm's training transform as (PIL image → uint8 [C,H,W], normalised [C,H,W] → [C,H,W]).

    The second holds what timm does after normalising: random erasing, or nothing.
    With `crop_padding` > 0 the random-resized crop gives way to a random crop after padding by that many
    pixels, as DeiT does for 32-pixel images; `augment`'s `no_aug` switches that off, too.
    With `reduced_decode` the first operation is a `ReducedCrop`.
    """
    check_augment(augment)
    keywords = {"interpolation": interpolation, **augment}
    try:
        ops = create_transform(image_size, is_training=True, mean=tuple(mean), std=tuple(std), **keywords)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"data.augment: timm cannot build a transform from {dict(keywords)}: {error!r}"
        ) from error
    ops = ops.transforms
    if crop_padding and not augment.get("no_aug"):
        resize = "bilinear" if keywords["interpolation"] == "random" else keywords["interpolation"]
        ops[0:1] = [
            transforms.Resize(image_size, interpolation=str_to_interp_mode(resize)),
            transforms.RandomCrop(image_size, padding=crop_padding),
        ]
    if reduced_decode:
        if not isinstance(ops[0], RandomResizedCropAndInterpolation):
            raise UserError(
                "data.reduced_decode is for timm's random-resized crop, which these settings of data.augment "
                "and data.crop_padding leave out"
            )
        ops[0] = ReducedCrop(ops[0])
    cut = next(i for i, op in enumerate(ops) if isinstance(op, MaybeToTensor))
    return transforms.Compose([*ops[:cut], MaybePILToTensor()]), transforms.Compose(ops[cut + 2 :])


def eval_transform(
    image_size: int | tuple[int, int],
    crop_pct: float,
    interpolation: str,
    crop_mode: str = "center",
    border: Sequence[float] = IMAGENET_DEFAULT_MEAN,
) -> transforms.Compose:
    """timm's evaluation transform up to the pixels: PIL image → uint8 [C,H,W].

    The shorter side is resized to `image_size / crop_pct` (224 / 0.875 = 256), then the centre is cropped.
    With `crop_mode` "squash" both sides are resized so; with "border" the longer one, and what is lacking
    gets the colour `border`, a number in 0 to 1 for each channel.
    """
    try:
        return create_transform(
            image_size,
            is_training=False,
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            mean=tuple(border),
            normalize=False,
        )
    except KeyError as error:
        raise UserError(
            f"data.interpolation: '{interpolation}' is none of bilinear, bicubic, lanczos, nearest"
        ) from error
