import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.transforms import RandomResizedCropAndInterpolation

from distill_dynamics.data.image_folder import RECIPE
from distill_dynamics.data.keyed import seed_generators
from distill_dynamics.data.sources import decoded
from distill_dynamics.data.transforms import FLIP, ReducedCrop, eval_transform, normalise, train_transforms
from distill_dynamics.errors import UserError

IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


def photo(height=290, width=340):
    noise = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_evaluation_is_timms_resize_256_crop_224_bit_for_bit():
    theirs = create_transform(224, interpolation="bicubic", crop_pct=0.875, **IMAGENET)
    pixels = eval_transform(224, 0.875, "bicubic")(photo())
    assert pixels.dtype == torch.uint8
    assert "size=256" in repr(theirs)
    assert torch.equal(normalise(pixels[None], *IMAGENET.values())[0], theirs(photo()))


def test_native_size_is_not_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    ours = eval_transform(28, 1.0, "bicubic")(Image.fromarray(pixels))
    assert np.array_equal(ours.numpy(), pixels[None])


def test_normalise_against_numpy():
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    expected = (pixels.numpy() / 255 - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(normalise(pixels, mean, std).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_recipes_training_ops_are_timms_cut_in_two():
    theirs = create_transform(224, is_training=True, interpolation="bicubic", **RECIPE, **IMAGENET)
    to_pixels, finish = train_transforms(224, *IMAGENET.values(), "bicubic", 0, RECIPE)
    names = [repr(op) for op in theirs.transforms]
    cut = names.index("MaybeToTensor()")
    assert [repr(op) for op in to_pixels.transforms[:-1]] == names[:cut]
    assert "RandAugment" in names[cut - 1]
    assert not any("ColorJitter" in name for name in names)  # timm drops it under RandAugment
    assert [repr(op) for op in finish.transforms] == names[cut + 2 :] == [names[-1]]
    assert "RandomErasing(p=0.25, mode=pixel" in names[-1]


def test_the_two_parts_in_a_row_are_timms_transform_bit_for_bit():
    settings = {**RECIPE, "re_prob": 1.0, "vflip": 0.5, "scale": [0.3, 1.0]}
    theirs = create_transform(96, is_training=True, interpolation="bicubic", **settings, **IMAGENET)
    to_pixels, finish = train_transforms(96, *IMAGENET.values(), "bicubic", 0, settings)
    for number in range(10):
        seed_generators(number)
        expected = theirs(photo())
        seed_generators(number)
        ours = finish(normalise(to_pixels(photo())[None], *IMAGENET.values())[0])
        assert torch.equal(ours, expected)


def test_crop_padding_gives_all_shifts_of_the_padded_image_and_nothing_else():
    pixels = np.random.default_rng(0).integers(1, 256, (6, 6), dtype=np.uint8)
    padded = np.pad(pixels, 1)
    shifts = [padded[top : top + 6, left : left + 6] for top in range(3) for left in range(3)]
    expected = {view.tobytes() for shift in shifts for view in (shift, shift[:, ::-1])}
    to_pixels, finish = train_transforms(6, (0.5,), (0.5,), "bicubic", 1, FLIP)
    views = set()
    for number in range(400):
        seed_generators(number)
        views.add(to_pixels(Image.fromarray(pixels)).numpy().tobytes())
    assert views == expected
    assert not finish.transforms


def test_crop_padding_at_another_size_resizes_first():
    to_pixels, _ = train_transforms(64, (0.5,), (0.5,), "bicubic", 4, FLIP)
    assert to_pixels(Image.new("L", (28, 28))).shape == (1, 64, 64)


def test_no_aug_is_the_image_itself():
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    to_pixels, finish = train_transforms(28, (0.5,), (0.5,), "bicubic", 2, {"no_aug": True})
    assert np.array_equal(to_pixels(Image.fromarray(pixels))[0].numpy(), pixels)
    assert not finish.transforms


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"auto_augmnet": "rand"}, "'auto_augmnet' .* did you mean 'auto_augment'"),
        ({"crop_pct": 0.9}, "'crop_pct' is not an augmentation setting"),
        ({"is_training": False}, "'is_training' is not an augmentation setting"),
        ({"re_prob": 0.5, "re_mode": "stars"}, "timm cannot build a transform from .*stars"),
        ({"interpolation": "bicubik"}, "bicubik"),
    ],
)
def test_a_setting_timm_does_not_know_is_one_line(augment, message):
    with pytest.raises(UserError, match=message) as caught:
        train_transforms(28, (0.5,), (0.5,), "bicubic", 0, augment)
    assert "\n" not in str(caught.value)


def test_an_unknown_interpolation_is_one_line():
    with pytest.raises(UserError, match="'cubic' is none of bilinear"):
        eval_transform(28, 1.0, "cubic")


def test_posterize_at_its_extreme():
    # RandAugment with inc1 asks for 0 bits at the top magnitude, which Pillow 13 refuses.
    op = AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10)
    assert op.level_fn(10, {}) == (0,)
    assert not np.asarray(op(photo())).any()


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_a_reduced_crop_is_timms_box_from_a_smaller_decoding(tmp_path, interpolation, monkeypatch):
    path = tmp_path / "large.jpg"
    photo(1200, 1603).save(path, quality=92)
    theirs = RandomResizedCropAndInterpolation((96, 128), interpolation=interpolation)
    ours = ReducedCrop(RandomResizedCropAndInterpolation((96, 128), interpolation=interpolation))
    whole = Image.open(path).convert("RGB")
    boxes, reduced = [], set()
    draw = RandomResizedCropAndInterpolation.get_params
    monkeypatch.setattr(
        RandomResizedCropAndInterpolation,
        "get_params",
        staticmethod(lambda *args: boxes.append(draw(*args)) or boxes[-1]),
    )
    for number in range(40):
        boxes.clear()
        seed_generators(number)
        expected, after = theirs(whole), random.random()
        seed_generators(number)
        image = decoded(path, "large.jpg", 0, ours.needed)
        seed_generators(number)
        view = ours(image)
        assert random.random() == after  # what is drawn next is the same, too
        assert boxes == [boxes[0]] * 3
        _, _, height, width = boxes[0]
        # Never enlarged where timm would not; and at the smallest scale of which that is true.
        scale = round(1603 / image.width)
        reduced.add(scale)
        assert scale == max(s for s in (1, 2, 4) if s == 1 or (height / s >= 96 and width / s >= 128))
        assert view.size == expected.size == (128, 96)
        difference = np.abs(np.asarray(view, float) - np.asarray(expected, float)).mean()
        assert difference == 0 if scale == 1 else difference < 2
    assert reduced == {2, 4}


def test_views_of_images_that_are_not_much_larger_than_a_view_are_timms_bit_for_bit(tmp_path):
    path = tmp_path / "usual.jpg"
    photo().save(path)
    usual, _ = train_transforms(224, *IMAGENET.values(), "bicubic", 0, RECIPE)
    reduced, _ = train_transforms(224, *IMAGENET.values(), "bicubic", 0, RECIPE, reduced_decode=True)
    for number in range(5):
        seed_generators(number)
        expected = usual(Image.open(path).convert("RGB"))
        seed_generators(number)
        image = decoded(path, "usual.jpg", 0, reduced.transforms[0].needed)
        seed_generators(number)
        assert torch.equal(reduced(image), expected)


@pytest.mark.parametrize(("padding", "augment"), [(4, RECIPE), (0, {"no_aug": True})])
def test_a_reduced_decoding_without_a_random_resized_crop_is_one_line(padding, augment):
    with pytest.raises(UserError, match=r"data\.reduced_decode is for timm's random-resized crop"):
        train_transforms(224, *IMAGENET.values(), "bicubic", padding, augment, reduced_decode=True)
