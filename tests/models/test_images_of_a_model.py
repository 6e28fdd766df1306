"""A batch as the data give it, and what a model of another size and other channels is shown of it."""

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import Precision
from PIL import Image
from standins import trainer_on_cpu

from distill_dynamics import Backbone
from distill_dynamics.data import FashionMNISTSample, ImageData
from distill_dynamics.data.sources import ArraySource
from distill_dynamics.errors import UserError
from distill_dynamics.models.input_size import check_patches, teacher_side
from distill_dynamics.models.normalise import Renormalise, resized
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.train.metrics import measure

VIT = {"patch_size": 14, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}


def vit(size, **kwargs):
    return Backbone("vit_tiny_patch16_224", timm_kwargs={**VIT, "img_size": size, **kwargs})


def pillow(image, side):
    """[H, W] floats, bicubic with antialiasing; Pillow's floats are not cut off at black and white."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("side", "to"), [(28, 98), (98, 28), (56, 42)])
def test_resizing_is_pillows(side, to):
    images = torch.randn(2, 3, side, side)
    shown = resized(images, to)
    for image, expected in zip(shown.flatten(0, 1), images.flatten(0, 1), strict=True):
        assert np.allclose(image, pillow(expected.numpy(), to), atol=1e-4)
    assert resized(images, side) is images
    halves = images.bfloat16()
    assert torch.equal(resized(halves, to), resized(halves.float(), to).bfloat16())


def test_grey_is_repeated_and_then_normalised_by_each_channel():
    grey = torch.rand(2, 1, 8, 8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shown = Renormalise((0.3,), (0.4,), mean, std)((grey - 0.3) / 0.4)
    pixels = np.repeat(grey.numpy(), 3, axis=1)
    expected = (pixels - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    assert np.allclose(shown, expected, atol=1e-5)


def test_a_teacher_of_its_own_size_is_shown_the_students_view_resized():
    data = FashionMNISTSample(labels=False, batch_size=4)
    data.trainer = trainer_on_cpu()
    data.setup("fit")
    view, _ = next(iter(data.train_dataloader()))
    teacher = Teacher(vit(56))
    teacher.take_images_of(data)
    assert teacher_side(teacher.backbone, data) == 56
    shown = teacher.images(view)
    assert shown.shape == (4, 3, 56, 56)
    mean, std = teacher.backbone.mean, teacher.backbone.std
    for image, grey in zip(shown, view, strict=True):
        pixels = pillow(grey[0].numpy(), 56) * data.std[0] + data.mean[0]
        for channel in range(3):
            assert np.allclose(image[channel], (pixels - mean[channel]) / std[channel], atol=1e-4)


@pytest.mark.parametrize(("teacher", "side"), [("fixed", 42), ("any", 56)])
def test_which_side_a_teacher_is_shown(teacher, side):
    data = FashionMNISTSample(labels=False, view_size=56)
    made = Teacher(vit(42) if teacher == "fixed" else Backbone("test_resnet"))
    made.take_images_of(data)
    assert made.images(torch.rand(1, 1, 56, 56)).shape == (1, 3, side, side)
    assert made.images(torch.rand(1, 1, 28, 28)).shape == (1, 3, side, side)  # of evaluation at the student's


def test_a_model_of_images_of_the_datas_size_is_shown_them_as_they_are():
    made = Teacher(vit(28, in_chans=1))
    data = FashionMNISTSample()
    made.backbone.set_normalisation(data.mean, data.std)
    made.take_images_of(data)
    images = torch.rand(1, 1, 28, 28)
    assert made.images(images) is images


def test_grey_fits_a_model_of_three_channels_and_colour_no_model_of_one():
    vit(28).check_input(1, 28)
    for model, channels in ((vit(28, in_chans=1), 3), (vit(28, in_chans=4), 1), (vit(28, in_chans=4), 3)):
        with pytest.raises(UserError, match=f"timm_kwargs.in_chans: {channels}"):
            model.check_input(channels, 28)


def test_a_margin_that_patches_leave_over_is_one_line():
    overlapping = Backbone("pit_ti_224", timm_kwargs={"img_size": 120})  # patches of 16 px, 8 apart
    padding = vit(98, dynamic_img_size=True, dynamic_img_pad=True)
    for fits, side in (
        (vit(98), 98),
        (Backbone("test_resnet"), 97),
        (overlapping, 120),
        (padding, 100),
        (vit(100, dynamic_img_size=True), 98),
    ):
        check_patches(fits, side)
    with pytest.raises(UserError, match=r"100 px, .*patches of 14 px do not divide; .*img_size: 98 or 112$"):
        check_patches(vit(100), 100)
    with pytest.raises(UserError, match=r"100 px, .* do not divide; set data.view_size: 98 or 112$"):
        check_patches(vit(98, dynamic_img_size=True), 100)


class Large(ImageData):
    """Images of more pixels than the student sees."""

    classes = ["a", "b"]  # noqa: RUF012
    in_chans = 3
    pixels = np.random.default_rng(0).integers(0, 256, (6, 56, 56, 3), dtype=np.uint8)

    def load(self, split):
        return ArraySource(self.pixels, np.arange(6) % 2)


def test_a_teacher_is_measured_on_images_made_at_its_own_size(monkeypatch):
    half = (0.5,) * 3
    data = Large(mean=half, std=half, image_size=28, augment={}, batch_size=2, eval_batch_size=6)
    data.trainer = trainer_on_cpu(precision_plugin=Precision(), is_global_zero=True, datamodule=data)
    data.trainer.progress_bar_callback, data.trainer.limit_val_batches = None, 1.0
    data.setup("fit")
    teacher, seen = Teacher(vit(56)), []
    teacher.take_images_of(data)
    monkeypatch.setattr(teacher, "logits", lambda images: seen.append(images) or torch.eye(2).repeat(3, 1))
    assert measure(teacher, data.trainer, 2)["acc1"] == 100
    (images,) = seen
    assert np.allclose(images, (Large.pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5, atol=1e-6)
