"""Which files count as images: the same in training, analysis and conversion."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from distill_dynamics.data import ImageFolder
from distill_dynamics.data.analysis_images import ImageSet
from distill_dynamics.data.sources import FileSource, UnreadableImage
from distill_dynamics.data.streaming.convert import convert
from distill_dynamics.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def pictures(folder: Path, count: int = 2, ending: str = "png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(PIXELS).save(folder / f"{number}.{ending}")
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    for split in ("train", "val"):
        for name in ("a", "b"):
            pictures(tmp_path / "data" / split / name)
    return tmp_path / "data"


def trained_on(data: Path, split: str = "train", **settings) -> FileSource:
    source = ImageFolder(str(data), image_size=16, batch_size=2, num_workers=0, **settings).load(split)
    assert isinstance(source, FileSource)
    return source


def names(source: FileSource) -> list[str]:
    return [os.fsdecode(name) for name in source.names]


def converted(data: Path, out: Path, split: str = "train", **settings) -> list[str]:
    convert(str(data), str(out), **settings)
    return [os.fsdecode(name) for name in np.load(out / split / "images.npz")["names"]]


def test_training_analysis_and_conversion_leave_out_what_is_no_image_of_the_users(data, tmp_path):
    expected = names(trained_on(data))
    junk = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails")
    for split in ("train", "val"):
        for name in junk:
            pictures(data / split / name)
            pictures(data / split / "a" / name)
        for name in ("._0.png", ".0.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
            (data / split / "a" / name).write_bytes(b"no image")
            (data / split / name).write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = ImageFolder(str(data), image_size=16, batch_size=2)
        assert names(folder.load("train")) == expected  # type: ignore[arg-type]
        assert folder.classes == ["a", "b"]
        analysed = ImageSet.of_path(data / "train")
    assert analysed.names(np.arange(4)) == expected
    assert converted(data, tmp_path / "out") == expected


def test_files_classes_and_their_order_are_torchvisions(tmp_path):
    """Of a tree without links or hidden files; its order is what seeds and probe sets go by."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for place in ("a", "a-b", "a/x", "a/x-y", "a/x/z", "B", "é", "folder.png/inner"):
            pictures(tmp_path / split / place)
            for ending in generator.choice(["PNG", "Jpg", "JPEG", "tiff", "webp", "bmp", "ppm", "txt"], 5):
                (tmp_path / split / place / f"{generator.integers(100)}.{ending}").write_bytes(b"")
    source, theirs = trained_on(tmp_path), datasets.ImageFolder(tmp_path / "train")
    assert [str(source.root / name) for name in names(source)] == [path for path, _ in theirs.samples]
    assert source.targets.tolist() == theirs.targets


@pytest.mark.parametrize("above", ["data/train/a", "data/train", "data", "."])
def test_a_link_to_a_folder_above_adds_nothing(data, tmp_path, above):
    expected = names(trained_on(data))
    (data / "train" / "a" / "again").symlink_to(tmp_path / above)
    (data / "train" / "b" / "deep").mkdir()
    (data / "train" / "b" / "deep" / "again").symlink_to(Path("..") / "..")
    with pytest.warns(UserWarning, match="again leads to a folder above, and is left out"):
        assert names(trained_on(data)) == expected
    with pytest.warns(UserWarning, match="and is left out"):
        assert ImageSet.of_path(data / "train").names(np.arange(4)) == expected
    with pytest.warns(UserWarning, match="and is left out"):
        assert len(ImageSet.of_path(data / "train" / "a").source.targets) == 2


def test_a_class_that_is_a_link_to_a_folder_above_is_none(data):
    for split in ("train", "val"):
        (data / split / "loop").symlink_to(data)
    with pytest.warns(UserWarning, match="loop leads to a folder above"):
        assert len(trained_on(data).targets) == 4


def test_links_in_a_circle_and_a_circle_outside_end(data, tmp_path):
    outside = pictures(tmp_path / "outside" / "in").parent
    (outside / "in" / "back").symlink_to(outside)
    (outside / "home").symlink_to(data / "train")
    (data / "train" / "a" / "more").symlink_to(outside)
    (data / "train" / "a" / "one").symlink_to("two")
    (data / "train" / "a" / "two").symlink_to("one")
    with pytest.warns(UserWarning, match="left out"):
        found = names(trained_on(data))
    assert found == ["a/0.png", "a/1.png", "a/more/in/0.png", "a/more/in/1.png", "b/0.png", "b/1.png"]


def test_classes_and_images_that_are_links_to_elsewhere_are_followed(data, tmp_path):
    store = pictures(tmp_path / ".store" / "objects", 3)
    for split in ("train", "val"):
        (data / split / "c").symlink_to(store)
        (data / split / "d").mkdir()
    for number in range(3):
        (data / "train" / "d" / f"link{number}.png").symlink_to(tmp_path / "elsewhere" / f"{number}.png")
        (data / "val" / "d" / f"link{number}.png").symlink_to(f"../../../elsewhere/{number}.png")
    pictures(tmp_path / "elsewhere", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.bincount(trained_on(data).targets).tolist() == [2, 2, 3, 3]
        assert np.bincount(trained_on(data, "val").targets).tolist() == [2, 2, 3, 3]


def test_a_file_that_several_links_lead_to_counts_once(data, tmp_path):
    pictures(tmp_path / "elsewhere")
    folder = data / "train" / "b"
    (folder / "aa.png").symlink_to("0.png")  # before the real one by name
    (folder / "chain.png").symlink_to("aa.png")
    (folder / "x.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (folder / "y.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    with pytest.warns(UserWarning, match=r"b/aa.png leads to what is listed already, and .* \(3 such\)"):
        assert names(trained_on(data))[2:] == ["b/0.png", "b/1.png", "b/x.png"]


def test_a_class_that_is_a_link_to_another_class_is_refused(data):
    for split in ("train", "val"):
        (data / split / "alias").symlink_to("b")
    with (
        pytest.warns(UserWarning, match="alias leads"),
        pytest.raises(UserError, match="alias holds no image"),
    ):
        trained_on(data)


def test_a_class_whose_folder_is_gone_is_named(data, tmp_path):
    for split in ("train", "val"):
        (data / split / "c").symlink_to(tmp_path / "unmounted")
    with pytest.raises(
        UserError, match=rf"train/c is a link to {tmp_path / 'unmounted'}, which is not there"
    ):
        trained_on(data)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(data, monkeypatch):
    usual = os.scandir

    def refusing(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    pictures(data / "train" / "a" / "deep")
    monkeypatch.setattr(os, "scandir", refusing)
    for read in (lambda: trained_on(data), lambda: ImageSet.of_path(data / "train")):
        with pytest.raises(UserError, match="deep cannot be read: Permission denied"):
            read()


def test_images_beside_the_class_folders_are_counted(data):
    pictures(data / "train", 3)
    with pytest.warns(UserWarning, match="3 of the images lie in .*train itself, in no class"):
        assert len(trained_on(data).targets) == 4


def test_formats_that_training_does_not_read_are_counted(data):
    for name in ("x.GIF", "y.heic"):
        (data / "train" / "a" / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"data.data_dir: 2 files in .*: \.gif \(1\), \.heic \(1\)"):
        assert len(trained_on(data).targets) == 4


KINDS = {
    "a link to nothing": lambda path: path.symlink_to("nowhere.png"),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_an_unreadable_image(data, tmp_path, kind):
    """Neither a traceback nor an endless wait; and it can be skipped, as any that cannot be read."""
    path = data / "train" / "a" / "9.png"
    KINDS[kind](path)
    source = trained_on(data)
    with pytest.raises(UnreadableImage, match=f"^{path}: [^\n]+$"):
        source.image(names(source).index("a/9.png"))
    folder = ImageFolder(str(data), True, image_size=16, batch_size=5, num_workers=0, augment={}, seed=0)
    folder.setup("fit")
    assert len(folder.fingerprint()) == 16
    with pytest.warns(UserWarning, match="left out unreadable image .*9.png"):
        (batch,) = folder.train_dataloader()
    assert len(batch[0]) == 4

    with pytest.raises(UserError, match=r"unreadable image .*9.png"):
        convert(str(data), str(tmp_path / "out"))
    with pytest.warns(UserWarning, match="left out unreadable image .*9.png"):
        assert "a/9.png" not in converted(data, tmp_path / "out", skip_unreadable=True)
    with pytest.warns(UserWarning, match="left out unreadable image .*9.png"):
        assert len(ImageSet.of_path(data / "train" / "a", skip_unreadable=True).draw(None, 0)) == 2
