import io
import multiprocessing
import os
import signal

import litdata
import numpy as np
import pytest
from litdata.streaming.writer import BinaryWriter
from PIL import Image
from test_data_image_folder import truncate, write_images
from torchvision import datasets, transforms

from distill_dynamics.cli.run_function import run
from distill_dynamics.data import StreamedImageFolder
from distill_dynamics.data.streaming import convert as module
from distill_dynamics.data.streaming.convert import convert
from distill_dynamics.errors import UserError


def small(folder, out, **settings):
    convert(str(folder), str(out), **{"chunk_mb": 0.01, **settings})
    return StreamedImageFolder(str(out), image_size=32, batch_size=4, num_workers=0)


def stored(data, split):
    """The source, and each image's file as litdata's own reader finds it."""
    data.setup("fit")
    source = data.sources[split]
    reader = litdata.StreamingDataset(f"{data.data_dir}/{split}")
    assert len(reader) == len(source.targets)
    return source, [reader[int(place)] for place in source.places]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_litdata_reads_each_file_byte_for_byte_and_once(tmp_path, num_workers):
    folder = write_images(tmp_path / "raw", images=7, modes=("RGB", "L", "RGBA", "CMYK"))
    data = small(folder, tmp_path / "out", num_workers=num_workers)
    for split in ("train", "val"):
        theirs = datasets.ImageFolder(folder / split)
        source, files = stored(data, split)
        assert data.classes == theirs.classes
        assert source.targets.tolist() == theirs.targets
        for (path, _), content in zip(theirs.samples, files, strict=True):
            with open(path, "rb") as file:
                assert content == file.read()
        assert len(source.chunks.names) > 2
    # The order on the disk: evaluation's own, and mixed for training.
    assert data.sources["val"].places.tolist() == list(range(21))
    assert np.abs(np.diff(data.sources["train"].targets[np.argsort(data.sources["train"].places)])).sum() > 5


def test_a_size_is_for_larger_images_and_the_rest_are_kept(tmp_path):
    folder = write_images(tmp_path / "raw", images=1)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, size in (("wide.jpg", (150, 90)), ("high.png", (64, 101)), ("equal.jpg", (48, 70))):
            noise = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
            noise.resize(size, Image.Resampling.BICUBIC).save(folder / split / "ant" / name, quality=95)
    data = small(folder, tmp_path / "out", size=48)
    theirs = datasets.ImageFolder(folder / "train")
    resize = transforms.Resize(48, transforms.InterpolationMode.BICUBIC)
    _, files = stored(data, "train")
    changed = 0
    for (path, _), content in zip(theirs.samples, files, strict=True):
        with open(path, "rb") as file:
            before = file.read()
        image, original = Image.open(io.BytesIO(content)).convert("RGB"), Image.open(path).convert("RGB")
        if min(original.size) <= 48:
            assert content == before
            continue
        changed += 1
        expected = resize(original)
        assert image.size == expected.size
        assert np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean() < 2.5
    assert changed == 2


def killed_at(where, monkeypatch, folder, out):
    """A conversion in a process of its own, killed (SIGKILL) at one of its last moments."""

    def die(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(original, when):
        def call(self, *args):
            return die() if when(self, *args) else original(self, *args)

        return call

    with monkeypatch.context() as patch:
        if where == "in the middle of train":
            when = lambda self, index, content: "train" in self._cache_dir and index == 7  # noqa: E731
            patch.setattr(BinaryWriter, "add_item", dying(BinaryWriter.add_item, when))
        elif where == "before train's index":
            patch.setattr(
                BinaryWriter, "merge", dying(BinaryWriter.merge, lambda self: "train" in self._cache_dir)
            )
        else:
            keep = module._Output.keep
            patch.setattr(module._Output, "keep", dying(keep, lambda self, name, *_: name == "dataset.json"))
        process = multiprocessing.get_context("fork").Process(target=small, args=(folder, out))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("where", ["in the middle of train", "before train's index", "before the last file"])
def test_a_killed_conversion_is_not_taken_for_whole_and_is_begun_anew(tmp_path, monkeypatch, where):
    folder, out = write_images(tmp_path / "raw"), tmp_path / "out"
    killed_at(where, monkeypatch, folder, out)
    assert list(out.glob("train/chunk-*")) or where == "in the middle of train"
    with pytest.raises(UserError, match="holds no finished conversion"):
        StreamedImageFolder(str(out)).setup("fit")
    _, files = stored(small(folder, out), "train")
    assert files == [
        path.read_bytes()
        for path in (folder / "train" / c / f"{n}.JPEG" for c in ("ant", "bee", "cat") for n in range(4))
    ]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UserError, match="holds a finished conversion"):
        small(folder, out)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


@pytest.mark.parametrize("name", ["notes.txt", "train/notes.txt"])
def test_what_is_in_the_way_is_named_and_kept(tmp_path, name):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=r"--out: .*notes\.txt.*name a new folder"):
        small(write_images(tmp_path / "raw"), tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_an_unreadable_image_is_named_or_left_out(tmp_path):
    folder = write_images(tmp_path / "raw")
    broken = truncate(folder / "train" / "bee" / "2.JPEG")
    with pytest.raises(UserError, match=f"unreadable image {broken}: .*--skip_unreadable"):
        small(folder, tmp_path / "out")
    with pytest.warns(UserWarning, match=f"left out unreadable image {broken}"):
        data = small(folder, tmp_path / "out", skip_unreadable=True)
    source, files = stored(data, "train")
    broken.unlink()
    theirs = datasets.ImageFolder(folder / "train")
    assert source.targets.tolist() == theirs.targets
    for (path, _), content in zip(theirs.samples, files, strict=True):
        with open(path, "rb") as file:
            assert content == file.read()


def test_a_class_that_loses_all_its_images_is_an_error(tmp_path):
    folder = write_images(tmp_path / "raw", images=1)
    truncate(folder / "val" / "bee" / "0.JPEG")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(UserError, match=f"no image in {folder / 'val' / 'bee'} can"),
    ):
        small(folder, tmp_path / "out", skip_unreadable=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 0}, "--size is at least 1"),
        ({"quality": 101}, "--quality is from 1 to 100"),
        ({"chunk_mb": 0}, "--chunk_mb is from 0 to 2000"),
        ({"num_workers": -1}, "--num_workers is at least 0"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_written(tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        small(write_images(tmp_path / "raw"), tmp_path / "out", **setting)
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_large_the_data_became(tmp_path, capsys):
    write_images(tmp_path / "raw")
    run(
        ["convert", "--data_dir", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--num_workers", "0"]
    )
    assert "train: 12 images in 1 chunks" in capsys.readouterr().out


def test_storage_of_an_unknown_kind_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--out: ftp://host/data: s3:// and gs:// are known"):
        small(write_images(tmp_path / "raw"), "ftp://host/data")
