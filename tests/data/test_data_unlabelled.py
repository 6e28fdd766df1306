"""Images without classes: what is listed, what training sees of labels, and what a view is."""

import os
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from standins import trainer_on_cpu
from test_data_image_folder import truncate, write_images

from distill_dynamics.data import FashionMNISTSample, ImageFolder, StreamedImageFolder, UnlabelledFolder
from distill_dynamics.data.fashion_mnist import SAMPLE
from distill_dynamics.data.keyed import Key
from distill_dynamics.data.streaming.convert import convert
from distill_dynamics.errors import UserError

SMALL = {"image_size": 24, "batch_size": 4, "num_workers": 0}


def photos(folder, count=2, places=("", "a", "a/b", "c")):
    """Images at any depth, in files of several kinds of ending, beside files that are none."""
    rng = np.random.default_rng(len(str(count)))
    for place in places:
        (folder / place).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{i}{'.png' if i % 2 else '.JPG'}")
        (folder / place / "notes.txt").write_text("no image")
    return folder


def unlabelled(folder, **settings):
    data = UnlabelledFolder(str(folder), **SMALL | settings)
    data.trainer = trainer_on_cpu()
    data.setup("fit")
    return data


def views(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    shown = [image.numpy().tobytes() for images, _ in loader for image in images]
    return dict(zip(list(loader.sampler), shown, strict=False))


@pytest.mark.parametrize("places", [("",), ("", "a", "a/b", "c"), ("x/y/z",)])
def test_every_image_counts_at_any_depth_in_the_order_of_its_path(tmp_path, places):
    data = unlabelled(photos(tmp_path / "photos", count=4, places=places))
    walked = [
        str(Path(root, name).relative_to(tmp_path / "photos"))
        for root, _, names in os.walk(tmp_path / "photos")
        for name in names
        if name.lower().endswith((".png", ".jpg"))
    ]
    assert [os.fsdecode(name) for name in data.sources["train"].names] == sorted(walked)
    assert (data.num_classes, data.class_names, data.val_classes, data.find_classes()) == (0, [], [], [])
    assert [targets.unique().tolist() for _, targets in data.train_dataloader()] == [[-100]] * len(places)


def test_validation_images_beside_have_torchvisions_classes(tmp_path):
    photos(tmp_path / "photos")
    write_images(tmp_path / "labelled" / "x", images=3)
    data = unlabelled(tmp_path / "photos", val_dir=str(tmp_path / "labelled" / "x" / "val"))
    theirs = torchvision.datasets.ImageFolder(tmp_path / "labelled" / "x" / "val")
    assert data.val_classes == theirs.classes
    assert data.num_classes == 0
    targets = torch.cat([targets for _, targets, *_ in data.val_dataloader()]).tolist()
    assert targets == theirs.targets
    assert np.bincount(data.sources["val"].targets[data.probe_set(6).indices]).tolist() == [2, 2, 2]


def test_without_validation_images_the_probe_set_is_of_training_images(tmp_path):
    data = unlabelled(photos(tmp_path / "photos"))
    drawn = data.probe_set(5)
    files = sorted(path for path in (tmp_path / "photos").rglob("*") if path.suffix in (".png", ".JPG"))
    for index, pixels in zip(drawn.indices, drawn.pixels, strict=True):
        with Image.open(files[index]) as image:
            side = image.convert("RGB").resize((36, 27), Image.Resampling.BICUBIC)  # 24 / 0.875, the shorter
        centre = np.asarray(side.crop((6, 2, 30, 26)))
        assert np.array_equal(centre.transpose(2, 0, 1), pixels)
    assert data.val_dataloader() == []
    data.trainer.state.fn = "validate"
    with pytest.raises(UserError, match="has no validation images"):
        data.val_dataloader()


def test_hidden_labels_change_neither_views_nor_validation():
    hidden, shown = (FashionMNISTSample(labels=labels, batch_size=64) for labels in (False, True))
    for data in (hidden, shown):
        data.trainer = trainer_on_cpu()
        data.setup("fit")
    assert (hidden.num_classes, hidden.class_names, hidden.find_classes()) == (0, [], [])
    assert hidden.val_classes == shown.class_names == torchvision.datasets.FashionMNIST.classes
    with np.load(SAMPLE) as arrays:
        assert hidden.sources["val"].targets.tolist() == arrays["val_labels"].tolist()
        assert np.bincount(arrays["train_labels"]).min() > 0
    assert set(hidden.sources["train"].targets.tolist()) == {-100}
    ours, theirs = next(iter(hidden.train_dataloader())), next(iter(shown.train_dataloader()))
    assert torch.equal(ours[0], theirs[0])
    assert theirs[1].min() >= 0 > ours[1].max()
    # What depends on labels, such as the images that losses are fitted to, is told by the fingerprint.
    assert hidden.views_depend_on()["fingerprint"] != shown.views_depend_on()["fingerprint"]


def test_an_image_folder_hides_its_classes_and_keeps_those_of_validation(tmp_path):
    write_images(tmp_path)
    data = ImageFolder(str(tmp_path), labels=False, **SMALL)
    data.setup("fit")
    assert (data.num_classes, data.find_classes(), data.val_classes) == (0, [], ["ant", "bee", "cat"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_left_out_or_named(tmp_path, num_workers):
    truncate(photos(tmp_path / "photos", count=3) / "a" / "1.png")
    settings = {"batch_size": 12, "num_workers": num_workers}
    data = unlabelled(tmp_path / "photos", skip_unreadable=True, **settings)
    with pytest.warns(UserWarning, match="left out unreadable"):
        ((images, targets),) = data.train_dataloader()
    assert len(images) == 11
    assert set(targets.tolist()) == {-100}
    with pytest.raises(UserError, match=r"unreadable image .*1\.png"):
        list(unlabelled(tmp_path / "photos", **settings).train_dataloader())


def test_chunks_give_the_folders_views_probe_set_and_validation(tmp_path):
    photos(tmp_path / "photos", count=6)
    write_images(tmp_path / "val", images=3)
    val_dir = str(tmp_path / "val" / "val")
    convert(str(tmp_path / "photos"), str(tmp_path / "out"), labels=False, val_dir=val_dir, chunk_mb=0.01)
    folder = unlabelled(tmp_path / "photos", val_dir=val_dir)
    chunks = StreamedImageFolder(str(tmp_path / "out"), labels=False, **SMALL)
    chunks.trainer = trainer_on_cpu(num_nodes=1)
    chunks.setup("fit")
    assert chunks.val_classes == folder.val_classes == ["ant", "bee", "cat"]
    assert chunks.num_classes == 0
    assert chunks.fingerprint() == folder.fingerprint()
    assert chunks.probe_set(6).probe_id == folder.probe_set(6).probe_id
    ours, theirs = views(chunks), views(folder)
    assert ours == {Key(*key): theirs[key] for key in ours}
    assert len(ours) == 24


def test_chunks_without_validation_images_have_none(tmp_path):
    convert(str(photos(tmp_path / "photos")), str(tmp_path / "out"), labels=False)
    data = StreamedImageFolder(str(tmp_path / "out"), labels=False, **SMALL)
    data.setup("fit")
    assert (data.val_classes, data.has_val, set(data.sources)) == ([], False, {"train"})
    labelled = StreamedImageFolder(str(tmp_path / "out"), **SMALL)
    for ask in (labelled.find_classes, lambda: labelled.setup("fit")):
        with pytest.raises(UserError, match=r"have no classes: set data\.init_args\.labels: false"):
            ask()


def test_a_labelled_conversion_is_read_without_its_labels(tmp_path):
    write_images(tmp_path / "raw")
    convert(str(tmp_path / "raw"), str(tmp_path / "out"))
    data = StreamedImageFolder(str(tmp_path / "out"), labels=False, **SMALL)
    data.setup("fit")
    assert (data.num_classes, data.find_classes(), len(data.val_classes)) == (0, [], 3)
    assert set(data.sources["train"].targets.tolist()) == {-100}


FOR_CLASSES = "without classes are for .*UnlabelledFolder"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: unlabelled(at / "none"), r"data\.data_dir: the folder .*none is missing"),
        (lambda at: unlabelled(at / "empty"), r"data\.data_dir: .*empty holds no image, nor do its folders"),
        (lambda at: unlabelled(at / "photos", val_dir=str(at / "photos" / "a")), "lie in one another"),
        (lambda at: unlabelled(at / "photos" / "a", val_dir=str(at / "photos")), "lie in one another"),
        (lambda at: unlabelled(at / "photos", val_dir=str(at / "link")), "lie in one another"),
        (lambda at: unlabelled(at / "photos", val_dir=str(at / "empty")), "val_dir: .* no class folders"),
        (lambda at: unlabelled(at / "photos", val_dir=str(at / "none")), r"none/<class>/<image>$"),
        (lambda at: ImageFolder(str(at / "photos")).load("train"), FOR_CLASSES),
        (lambda at: ImageFolder(str(at)).find_classes(), FOR_CLASSES),
        (lambda at: convert(str(at / "photos"), str(at / "out")), FOR_CLASSES),
        (lambda at: convert(str(at / "photos"), "x", val_dir="y"), "--val_dir is for --labels false"),
        (lambda at: FashionMNISTSample(view_size=20), r"data\.view_size: 20 is below data\.image_size 28"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path, make, message):
    photos(tmp_path / "photos")
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos" / "c")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=message) as error:
        make(tmp_path)
    assert "\n" not in str(error.value)


def test_a_conversion_of_which_nothing_can_be_read_is_one_line(tmp_path):
    for path in [*photos(tmp_path / "photos", count=1, places=("",)).glob("*.JPG")]:
        truncate(path)
    nothing = pytest.raises(UserError, match=r"no image in .*photos can be read")
    with nothing, pytest.warns(UserWarning, match="left out"):
        convert(str(tmp_path / "photos"), str(tmp_path / "out"), labels=False, skip_unreadable=True)


def test_views_are_drawn_at_their_own_size_and_evaluation_at_its():
    plain = {"crop_padding": 0, "augment": {"no_aug": True}}
    data = FashionMNISTSample(labels=False, view_size=56, batch_size=8, **plain)
    data.trainer = trainer_on_cpu()
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    first = next(iter(data.train_dataloader().sampler)).image
    with np.load(SAMPLE) as arrays:
        pixels = Image.fromarray(arrays["train_images"][first]).resize((56, 56), Image.Resampling.BICUBIC)
        expected = (np.asarray(pixels) / 255 - 0.2860) / 0.3530
    assert np.allclose(images[0, 0], expected, atol=1e-5)
    assert next(iter(data.val_dataloader()))[0].shape[-2:] == (28, 28)
    assert next(iter(data.val_dataloader(size=56)))[0].shape[-2:] == (56, 56)
    small, large = data.probe_set(8), data.probe_set(8, size=56)
    assert small.indices.tolist() == large.indices.tolist()
    assert large.pixels.shape == (8, 1, 56, 56)


def test_fixed_views_of_one_size_are_of_one_identity_whatever_the_students():
    def facts(**settings):
        data = FashionMNISTSample(views=1, **settings)
        data.setup("fit")
        return data.views_depend_on()

    assert facts(view_size=56) == facts(image_size=56)
    assert facts(view_size=56) != facts()
    assert facts()["image_size"] == 28  # as caches were made by before there was a view_size


def test_another_datamodule_of_the_users_needs_none_of_it():
    class Foreign(pl.LightningDataModule):
        mean, std, image_size = (0.5,), (0.5,), 28

    from distill_dynamics.models.input_size import of_side, views_side

    assert views_side(Foreign()) == 28
    assert of_side(Foreign(), 56) == {}
