import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision import datasets

from distill_dynamics.data import ImageFolder
from distill_dynamics.errors import UserError


def write_images(folder, classes=("ant", "bee", "cat"), images=4, modes=("RGB",)):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).convert(modes[number % len(modes)])
                ending = "png" if image.mode == "RGBA" else "JPEG"
                image.save(folder / split / name / f"{number}.{ending}")
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[:-300])
    return path


def error_of(loader):
    # pytest.raises would keep the workers in a reference cycle, which torch takes 5 s to give up on.
    try:
        list(loader)
    except UserError as error:
        return str(error)
    raise AssertionError("no UserError")


def make(folder, **kwargs):
    settings = {"image_size": 32, "batch_size": 4, "num_workers": 0}
    data = ImageFolder(str(folder), **(settings | kwargs))
    data.setup("fit")
    return data


def test_images_and_targets_are_torchvisions_under_timms_evaluation(tmp_path):
    data = make(write_images(tmp_path, modes=("RGB", "L", "RGBA", "CMYK")))
    transform = create_transform(
        32, interpolation="bicubic", crop_pct=0.875, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
    )
    theirs = datasets.ImageFolder(tmp_path / "val", transform)
    images, targets = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    assert torch.equal(images, torch.stack([image for image, _ in theirs]))
    assert targets.tolist() == theirs.targets
    assert data.classes == theirs.classes
    assert data.num_classes == 3


def test_the_defaults_are_the_published_recipe(tmp_path):
    data = ImageFolder(str(write_images(tmp_path)))
    assert repr(data._eval_transform()).count("size=256") == 1
    to_pixels, finish = data._train_transforms()
    assert "RandAugment(n=2" in repr(to_pixels)
    assert "RandomResizedCropAndInterpolation(size=(224, 224)" in repr(to_pixels)
    assert "RandomErasing(p=0.25, mode=pixel" in repr(finish)


def test_training_views_do_not_depend_on_the_workers(tmp_path):
    write_images(tmp_path)
    here, there = (
        torch.cat([x for x, _ in make(tmp_path, num_workers=n).train_dataloader()]) for n in (0, 2)
    )
    assert torch.equal(here, there)


def test_a_reduced_decoding_shows_the_same_views_but_for_a_few_grey_levels(tmp_path):
    write_images(tmp_path, images=2)
    noise = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for path in tmp_path.rglob("*.JPEG"):
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(path)
    settings = {"augment": {"color_jitter": None}, "seed": 3, "num_workers": 0}
    usual, reduced = (
        make(tmp_path, reduced_decode=on, **settings).train_dataloader() for on in (False, True)
    )
    for (images, targets), (others, again) in zip(usual, reduced, strict=True):
        assert torch.equal(targets, again)
        assert not torch.equal(images, others)
        assert (images - others).abs().mean() * 0.225 * 255 < 3  # the standard deviation of a channel
    assert repr(reduced.dataset.to_pixels.transforms[0]).startswith("ReducedCrop(RandomResizedCrop")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'train'} is missing"):
        make(tmp_path)
    (tmp_path / "train" / "ant").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "train" / "ant" / "1.jpg")
    with pytest.raises(UserError, match=f"{tmp_path / 'val'} is missing"):
        make(tmp_path)


def test_a_split_without_class_folders_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "train" / "1.jpg")
    with pytest.raises(UserError, match=f"{tmp_path / 'train'} holds no class folders"):
        make(tmp_path)


def test_an_empty_class_is_named(tmp_path):
    write_images(tmp_path)
    for file in (tmp_path / "val" / "bee").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(UserError, match=f"{tmp_path / 'val' / 'bee'} holds no image"):
        make(tmp_path)


@pytest.mark.parametrize(("has", "lacks"), [("train", "val"), ("val", "train")])
def test_classes_that_differ_are_named(tmp_path, has, lacks):
    write_images(tmp_path)
    (tmp_path / has / "dog").mkdir()
    with pytest.raises(UserError, match=f"{has}/ has the class 'dog' that {lacks}/ lacks"):
        make(tmp_path)


def test_validation_alone_needs_no_training_images(tmp_path):
    write_images(tmp_path)
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    data = ImageFolder(str(tmp_path), image_size=32, num_workers=0)
    data.setup("validate")
    assert sum(len(targets) for _, targets in data.val_dataloader()) == 12


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["truncated", "empty", "not an image"])
def test_an_unreadable_image_is_one_line_that_names_it(tmp_path, num_workers, kind):
    write_images(tmp_path)
    path = tmp_path / "train" / "bee" / "2.JPEG"
    if kind == "truncated":
        truncate(path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"<html>not found</html>")
    message = error_of(make(tmp_path, num_workers=num_workers).train_dataloader())
    assert message.startswith(f"unreadable image {path}: ")
    assert "\n" not in message
    assert "skip_unreadable" in message


def test_sixteen_bits_are_refused_and_not_clipped_to_white(tmp_path):
    write_images(tmp_path)
    path = tmp_path / "val" / "bee" / "0.JPEG"
    Image.fromarray(np.full((40, 50), 30_000, dtype=np.uint16)).save(path, format="PNG")
    data = make(tmp_path)
    data.setup()
    assert f"{path}: mode I;16: only images of 8 bits a channel" in error_of(data.val_dataloader())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_can_be_left_out_and_counted(tmp_path, num_workers):
    write_images(tmp_path, images=6)
    broken = [truncate(tmp_path / "train" / "ant" / f"{number}.JPEG") for number in range(5)]
    broken.append(truncate(tmp_path / "val" / "cat" / "0.JPEG"))
    data = make(tmp_path, num_workers=num_workers, skip_unreadable=True, batch_size=9, eval_batch_size=2)
    train, val = data.train_dataloader(), data.val_dataloader()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # a file is counted once
            assert sum(len(targets) for _, targets in train) == 18 - 5
            assert sorted(torch.cat([y for _, y in val]).tolist()) == [0] * 6 + [1] * 6 + [2] * 5
    assert sorted(line.split(":")[0] for line in data.unreadable.lines) == sorted(map(str, broken))
    messages = [str(w.message) for w in caught if "unreadable" in str(w.message)]
    assert len(messages) == 4  # three names, and that the rest is only counted
    assert sum(any(str(path) in message for path in broken) for message in messages) == 3


def test_a_batch_with_nothing_left_counts_nowhere_and_is_an_error_in_training(tmp_path):
    write_images(tmp_path)
    for split in ("train", "val"):
        for number in range(4):
            truncate(tmp_path / split / "ant" / f"{number}.JPEG")
    data = make(tmp_path, skip_unreadable=True, eval_batch_size=4, batch_size=2)
    batches = list(data.val_dataloader())
    assert [y.tolist() for _, y in batches] == [[-100], [1] * 4, [2] * 4]
    assert batches[0][0].shape == (1, *batches[1][0].shape[1:])
    with pytest.raises(UserError, match=r"none of the images asked for can be read, as .*ant"):
        list(data.train_dataloader())


def test_images_of_which_none_can_be_read_are_a_line(tmp_path):
    write_images(tmp_path)
    for path in (tmp_path / "val").glob("*/*.JPEG"):
        truncate(path)
    data = make(tmp_path, skip_unreadable=True, eval_batch_size=4)
    with pytest.raises(UserError, match=r"no image can be read, as .*JPEG"):
        list(data.val_dataloader())
    with pytest.raises(UserError, match=r"none of the images asked for can be read, as .*JPEG"):
        data.probe_set(99, at_most=True)


def test_the_probe_set_names_or_replaces_an_unreadable_image(tmp_path):
    write_images(tmp_path)
    chosen = make(tmp_path).probe_set(6).indices
    path = truncate(make(tmp_path).sources["val"].path(chosen[2]))
    with pytest.raises(UserError, match=str(path)):
        make(tmp_path).probe_set(6)
    data = make(tmp_path, skip_unreadable=True)
    probe = data.probe_set(6)
    assert chosen[2] not in probe.indices
    assert np.bincount(data.sources["val"].targets[probe.indices]).tolist() == [2, 2, 2]
    assert len(data.unreadable.lines) == 1
    with pytest.raises(UserError, match="12 probe images cannot be drawn from 11"):
        data.probe_set(12)


def test_the_fingerprint_follows_names_classes_and_sizes(tmp_path):
    write_images(tmp_path)
    prints = [make(tmp_path).fingerprint()]
    assert make(tmp_path).fingerprint() == prints[0]
    path = tmp_path / "train" / "ant" / "0.JPEG"
    path.write_bytes(path.read_bytes() + b"\0")
    prints.append(make(tmp_path).fingerprint())
    path.rename(path.with_stem("renamed"))
    prints.append(make(tmp_path).fingerprint())
    assert len(set(prints)) == 3


def test_reading_leaves_the_global_generators_alone(tmp_path):
    loader = make(write_images(tmp_path)).train_dataloader()
    random.seed(3), torch.manual_seed(3)
    before = random.getstate(), torch.get_rng_state()
    list(loader)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
