import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from test_data_image_folder import error_of

from distill_dynamics import Backbone, UserError
from distill_dynamics.data import FashionMNISTSample, ImageFolder, ProbeSet
from distill_dynamics.data.analysis_images import ImageSet, ImageStream
from distill_dynamics.data.transforms import eval_transform


def picture(path: Path, seed: int, size: tuple[int, int] = (50, 40), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "tree"
    for folder, count in (("zebra", 9), ("deep/ant", 3), ("deep/be", 6)):
        for i in range(count):
            picture(root / folder / f"{i}.png", 100 * len(folder) + i, (40 + i, 60 - i))
    (root / "notes.txt").write_text("no image")
    (root / "zebra" / "._0.png").write_bytes(b"a Mac's")
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "x.png").write_bytes(b"hidden")
    return root


def stream(images: ImageSet, indices, channels: int = 3, size: int = 16, **settings) -> ImageStream:
    mean, std = [0.5] * channels, [0.25] * channels
    return ImageStream(images.source, indices, eval_transform(size, 1.0, "bicubic"), mean, std, **settings)


def test_classes_are_the_folders_in_which_the_files_lie(tree):
    images = ImageSet.of_path(tree)
    names = images.names(np.arange(18))
    assert names == sorted(names)
    assert len(images.source.targets) == 18
    by_target: dict[int, set[str]] = {}
    for name, target in zip(names, images.source.targets, strict=True):
        by_target.setdefault(int(target), set()).add(os.path.dirname(name))
    assert sorted(by_target.values(), key=min) == [{"deep/ant"}, {"deep/be"}, {"zebra"}]


@pytest.mark.parametrize(("n", "counts"), [(3, [1, 1, 1]), (8, [3, 3, 2]), (12, [3, 5, 4]), (18, [3, 6, 9])])
def test_the_draw_is_class_balanced(tree, n, counts):
    images = ImageSet.of_path(tree)
    folders = [os.path.dirname(name) for name in images.names(images.draw(n, seed=0))]
    found = [folders.count(folder) for folder in ("deep/ant", "deep/be", "zebra")]
    assert len(set(images.draw(n, seed=0))) == n
    assert found[0] == counts[0]  # ant has but three
    assert abs(found[1] - found[2]) <= (1 if n < 18 else 3)
    assert sum(found) == n


def test_all_images_and_a_flat_folder(tree):
    assert sorted(ImageSet.of_path(tree).draw(None, seed=3)) == list(range(18))
    flat = ImageSet.of_path(tree / "zebra")
    assert set(flat.source.targets) == {0}
    assert len(flat.draw(5, seed=0)) == 5


def test_images_of_formats_that_are_not_read_are_counted_in_one_line(tree, recwarn):
    ImageSet.of_path(tree)
    assert not recwarn  # notes.txt and what is hidden are no images of the user's
    for name in ("zebra/a.GIF", "zebra/b.gif", "deep/c.heic", "zebra/.d.gif"):
        (tree / name).write_bytes(b"")
    images = ImageSet.of_path(tree)
    assert len(images.source.targets) == 18
    (warning,) = recwarn
    assert (
        str(warning.message) == f"--images: 3 files in {tree} left out, not being read: .gif (2), .heic (1)"
    )


def test_one_file(tree):
    images = ImageSet.of_path(tree / "zebra" / "4.png")
    assert images.names(images.draw(1, seed=0)) == ["4.png"]


@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere", "no such folder or file: .*nowhere"), ("empty", "empty holds no image.*[.]png")],
)
def test_a_wrong_path_is_one_line(tmp_path, path, words):
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match=words) as caught:
        ImageSet.of_path(tmp_path / path)
    assert "\n" not in str(caught.value)


def test_more_images_than_there_are(tree):
    with pytest.raises(UserError, match="19 is more than the 18 images"):
        ImageSet.of_path(tree).draw(19, seed=0)


TIMM = [
    ("test_vit", {}),  # bicubic, crop_pct 0.95, mean 0.5
    ("resnet18", {}),  # bilinear or bicubic and a crop of its own, ImageNet's mean
    ("mixer_s32_224", {}),
    ("vit_base_patch16_siglip_224", {"depth": 1, "embed_dim": 12, "num_heads": 1}),  # squashes
]


@pytest.mark.parametrize(("name", "timm_kwargs"), TIMM, ids=[name for name, _ in TIMM])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_pixels_are_those_of_timms_own_transform(tmp_path, name, timm_kwargs, mode):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i, (300, 260 - 30 * i), mode)
    backbone = Backbone(name, timm_kwargs=timm_kwargs)
    evaluation = backbone.evaluation
    images = ImageSet.of_path(tmp_path)
    to_pixels = eval_transform(*evaluation, border=backbone.mean)
    ours = ImageStream(images.source, np.arange(3), to_pixels, backbone.mean, backbone.std, batch_size=2)
    config = timm.data.resolve_data_config({}, model=timm.create_model(name, **timm_kwargs))
    theirs = timm.data.create_transform(**config)
    expected = torch.stack([theirs(Image.open(tmp_path / f"{i}.png").convert("RGB")) for i in range(3)])
    torch.testing.assert_close(torch.cat(list(ours)), expected, atol=2e-6, rtol=0)


def test_a_border_is_timms(tmp_path):
    picture(tmp_path / "0.png", 0, (80, 40))
    mean = (0.2, 0.4, 0.6)
    theirs = timm.data.create_transform(
        32, interpolation="bicubic", crop_pct=1.0, crop_mode="border", mean=mean, std=(1, 1, 1)
    )(Image.open(tmp_path / "0.png"))
    images = ImageSet.of_path(tmp_path)
    to_pixels = eval_transform(32, 1.0, "bicubic", "border", border=mean)
    (ours,) = ImageStream(images.source, np.arange(1), to_pixels, mean, (1, 1, 1))
    torch.testing.assert_close(ours[0], theirs, atol=2e-6, rtol=0)


def test_a_one_channel_model_gets_grey_and_a_three_channel_model_colour(tmp_path):
    picture(tmp_path / "0.png", 0, (16, 16))
    grey = np.asarray(Image.open(tmp_path / "0.png").convert("L"), dtype=np.float32) / 255
    images = ImageSet.of_path(tmp_path)
    (one,) = stream(images, np.arange(1), channels=1)
    (three,) = stream(images, np.arange(1), channels=3)
    assert (one.shape, three.shape) == ((1, 1, 16, 16), (1, 3, 16, 16))
    np.testing.assert_allclose(one[0, 0].numpy(), (grey - 0.5) / 0.25, atol=1e-5)
    sample = ImageSet.of_sample()  # grey pixels
    (three,) = stream(sample, np.arange(2), channels=3)
    assert torch.equal(three[:, 0], three[:, 2])


@pytest.mark.parametrize(("batch_size", "num_workers"), [(32, 0), (4, 0), (4, 2)])
def test_probe_id_is_that_of_the_probe_set(tree, batch_size, num_workers):
    images = ImageSet.of_path(tree)
    indices = images.draw(11, seed=2)
    batches = stream(images, indices, batch_size=batch_size, num_workers=num_workers)
    assert batches.probe_id == ""
    first = torch.cat(list(batches))
    pixels = torch.round((first * 0.25 + 0.5) * 255).to(torch.uint8)
    assert batches.probe_id == ProbeSet(indices, pixels).probe_id
    assert len(batches) == -(-11 // batch_size)
    assert torch.equal(torch.cat(list(batches)), first)


def test_a_datamodule_gives_the_probe_set_of_a_training():
    data = FashionMNISTSample(image_size=20, crop_pct=0.8, interpolation="bilinear")
    images = ImageSet.of_datamodule(data, "a.yaml")
    probe = data.probe_set(7, seed=5)
    assert images.draw(7, seed=5).tolist() == probe.indices.tolist()
    to_pixels = eval_transform(**images.evaluation)
    batches = ImageStream(images.source, probe.indices, to_pixels, [0.5], [0.5], batch_size=3)
    torch.testing.assert_close(torch.cat(list(batches)), probe.normalised([0.5], [0.5]))
    assert batches.probe_id == probe.probe_id


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_one_line_also_from_a_worker(tree, num_workers):
    (tree / "zebra" / "3.png").write_bytes(b"no image")
    images = ImageSet.of_path(tree)
    message = error_of(stream(images, np.arange(18), batch_size=4, num_workers=num_workers))
    assert re.fullmatch(r"unreadable image .*zebra/3\.png: .*--skip_unreadable.*", message)


@pytest.mark.parametrize("n", [16, None])
def test_unreadable_images_are_left_out_where_asked_for(tree, n):
    for name in ("0", "3"):
        (tree / "zebra" / f"{name}.png").write_bytes(b"no image")
    images = ImageSet.of_path(tree, skip_unreadable=True)
    with pytest.warns(UserWarning, match=r"zebra/(0|3)\.png"):
        indices = images.draw(n, seed=0)
    assert sorted(images.names(indices)) == sorted(
        name for name in images.names(np.arange(18)) if name not in ("zebra/0.png", "zebra/3.png")
    )
    assert len(torch.cat(list(stream(images, indices)))) == 16
    with pytest.warns(match="left out"), pytest.raises(UserError, match="17 is more than the 16 images"):
        images.draw(17, seed=0)


def test_a_datamodule_can_ask_to_skip(tree):
    for split in ("train", "val"):
        picture(tree / split / "cat" / "0.png", 1)
    assert not ImageSet.of_datamodule(ImageFolder(str(tree)), "x").skip_unreadable
    assert ImageSet.of_datamodule(ImageFolder(str(tree), skip_unreadable=True), "x").skip_unreadable


MEMORY = """
import resource, sys
import numpy as np, torch
from distill_dynamics import Backbone
from distill_dynamics.data.analysis_images import ImageSet, ImageStream
from distill_dynamics.data.transforms import eval_transform
from distill_dynamics.dynamics import profile_ranges
torch.set_num_threads(1)
vit = dict(img_size=112, patch_size=16, embed_dim=24, depth=2, num_heads=2)
backbone = Backbone("deit_tiny_patch16_224", timm_kwargs=vit)
sample = ImageSet.of_sample().source
indices = np.resize(np.arange(1000), int(sys.argv[1]))
to_pixels = eval_transform(*backbone.evaluation)
batches = ImageStream(sample, indices, to_pixels, backbone.mean, backbone.std, batch_size=16)
profile_ranges(backbone, batches, value_ranges=["global"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    def peak(images: int) -> int:  # KiB
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", MEMORY, str(images)]
        return int(
            subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        )

    held = 1440 * 3 * 112 * 112 * 4 // 1024  # what the further images would take if they were kept
    assert peak(1600) - peak(160) < held / 10
