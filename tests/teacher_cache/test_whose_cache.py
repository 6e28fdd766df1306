"""What a cache may stand for, and what a start on one says when it may not."""
# ruff: noqa: F811 - fixtures are imported

import json
from collections import namedtuple
from importlib import metadata

import numpy as np
import pytest
import torch
import yaml
from caching import (  # noqa: F401 - fixtures
    ONE_STEP,
    Setup,
    _work_goes_with_depth,
    folder,
    losses_of,
    small_blocks,
)

from distill_dynamics.cli.main import main
from distill_dynamics.data import ImageFolder, StreamedImageFolder
from distill_dynamics.data.streaming.convert import convert
from distill_dynamics.errors import UserError
from distill_dynamics.losses.logits import soft_kd
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.teacher_cache import plan
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.identity import identity, validated_on
from distill_dynamics.teacher_cache.layout import Field, Layout
from distill_dynamics.train import cache_teacher as cache_teacher_module
from distill_dynamics.train import prepare_teachers


@pytest.fixture
def config(experiment, folder):
    """A YAML whose last term reads the teacher's last block."""
    term = {"loss": {"class_path": "distill_dynamics.losses.SpectralKD"}, "weight": 0.2, "last": 1}
    data = {"data_dir": str(folder), "image_size": 28, "batch_size": 16, "num_workers": 0, "views": 2}
    rgb = {"model__student__timm_kwargs__in_chans": 3, "model__teacher__timm_kwargs__in_chans": 3}
    return experiment(
        "cached",
        **rgb,
        model__terms={"last": term},
        data={"class_path": "distill_dynamics.data.ImageFolder", "init_args": data},
        trainer__max_epochs=1,
        trainer__limit_train_batches=1,
    )


def test_the_config_that_trains_with_the_cache_builds_it(config, tmp_path, capsys, no_report):
    """By the commands; and a run that is over needs its cache no more."""
    content = yaml.safe_load(config.read_text())
    content["model"]["teacher_cache"] = str(tmp_path / "cache")
    config.write_text(yaml.safe_dump(content))
    build = ["cache-teacher", "--config", str(config), "--out", str(tmp_path / "cache")]
    for number in ("0", "-1"):
        with pytest.raises(SystemExit):
            main([*build, "--top_k", number])
        assert "--top_k: expected a whole number above 0" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    main(build)
    main([*build, "--verify"])
    main(["fit", "--config", str(config), "--name", "done"])
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    run = tmp_path / "runs" / "done"
    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "last"])
    assert "val/acc1" in capsys.readouterr().out


def test_what_a_kill_left_before_the_plan_was_written_is_cleared_away(folder, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / ".cache.json.0123.partial").write_text("{")
    (cache / "rows.npy").write_text("of another order")
    Setup(folder).cache(cache)
    assert not list(cache.rglob("*.partial"))
    assert sorted(np.load(cache / "rows.npy")) == list(range(120))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        Setup(folder).cache(tmp_path / "mine")


def test_the_room_is_looked_at_again_when_a_build_goes_on(folder, tmp_path, monkeypatch, small_blocks):
    setup = Setup(folder)
    setup.cache(tmp_path)
    gone = sorted((tmp_path / "done").iterdir())[:2]
    for path in gone:
        path.unlink()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 20_000))
    with pytest.raises(UserError, match=r"takes 25\.5kB .*20\.0kB free"):
        setup.cache(tmp_path)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 30_000))
    setup.cache(tmp_path)
    assert all(path.exists() for path in gone)


def test_the_teachers_accuracy_is_measured_anew_on_other_images(folder, tmp_path, monkeypatch):
    measured = []

    def measure(teacher, trainer, classes):
        measured.append(trainer.datamodule.crop_pct)
        return {"acc1": 12.5, "acc5": 50.0}

    for module in (prepare_teachers, cache_teacher_module):
        monkeypatch.setattr(module, "measure", measure)
    Setup(folder).cache(tmp_path)
    for crop in (1.0, 0.5):
        rows = Setup(folder, data={"crop_pct": crop}, trainer=ONE_STEP).fit(tmp_path)
        assert rows[0]["teacher/acc1"] == 12.5
    assert measured == [0.875, 1.0, 0.5]


def test_a_cache_tells_the_accuracy_on_its_own_images_alone(folder, tmp_path, monkeypatch):
    """20 validation images in batches of 7; of another part of them it is measured anew."""
    measured = []
    original = cache_teacher_module.measure

    def measure(teacher, trainer, classes):
        measured.append(trainer.limit_val_batches)
        return original(teacher, trainer, classes)

    for module in (prepare_teachers, cache_teacher_module):
        monkeypatch.setattr(module, "measure", measure)
    Setup(folder, trainer={"limit_val_batches": 1}).cache(tmp_path)
    found = {}
    for limit in (1, 1.0, 2):
        short = {"limit_train_batches": 1, "max_epochs": 1, "limit_val_batches": limit}
        found[repr(limit)] = Setup(folder, trainer=short).fit(tmp_path)[0]["teacher/acc1"]
    assert [repr(limit) for limit in measured] == ["1", "1.0", "2"]
    assert all(
        found[limit] * count / 100 == pytest.approx(round(found[limit] * count / 100))
        for limit, count in (("1", 7), ("1.0", 20), ("2", 14))
    )  # whole images of so many


def test_data_without_fixed_views_is_told(config, tmp_path):
    class Mine:
        pass

    with pytest.raises(UserError, match=r"Mine has no fixed views .*ImageData"):
        identity(Backbone("deit_tiny_patch16_224", timm_kwargs={"depth": 1}), Mine(), "32-true")


def test_a_build_of_torch_is_not_a_version(folder, monkeypatch):
    teacher = Backbone("deit_tiny_patch16_224", timm_kwargs={"depth": 1})
    data = ImageFolder(str(folder), image_size=28, views=2)
    data.setup("fit")
    version = metadata.version
    before = identity(teacher, data, "32-true")
    monkeypatch.setattr(metadata, "version", lambda name: version(name).split("+")[0] + "+cu999")
    assert identity(teacher, data, "32-true") == before
    monkeypatch.setattr(metadata, "version", lambda name: "0.1")
    assert identity(teacher, data, "32-true")["version of torch"] == "0.1"


def test_transforms_of_a_subclass_are_part_of_what_made_it(folder):
    class Sharper(ImageFolder):
        def _train_transforms(self):
            to_pixels, finish = super()._train_transforms()
            to_pixels.transforms.insert(1, torch.nn.Identity())
            return to_pixels, finish

    plain, other = (kind(str(folder), image_size=28, views=2) for kind in (ImageFolder, Sharper))
    for data in (plain, other):
        data.setup("fit")
    here, there = plain.views_depend_on(), other.views_depend_on()
    assert [name for name in here if here[name] != there[name]] == ["transforms"]


def test_with_all_classes_stored_any_temperature_will_do():
    torch.manual_seed(0)
    student, teacher = torch.randn(64, 10), 3 * torch.randn(64, 10)
    layout = Layout(64, 1, 64, {"log_probs": Field((10,), "float16")})
    stored = TeacherCache("", {}, layout, {}, 10, 2.0, 0, {}, {})
    row = {"log_probs": (teacher / 2.0).log_softmax(1).half()}
    for temperature in (1.0, 2.0, 5.0):
        found = soft_kd(student, stored.logits(row), temperature)
        assert found.item() == pytest.approx(soft_kd(student, teacher, temperature).item(), rel=1e-3)


def test_streamed_images_are_gone_through_chunk_by_chunk_and_share_their_folders_cache(
    tmp_path, folder, monkeypatch
):
    convert(str(folder), str(tmp_path / "chunks"), chunk_mb=0.05)
    of_folder = Setup(folder, trainer=ONE_STEP)
    streamed = Setup(tmp_path / "chunks", data_class=StreamedImageFolder)
    read, chunks = [], ImageFolder.views_dataloader

    def watched(self, views):
        places = getattr(self.sources["train"], "places", None)
        if places is not None and len(views) > 100:
            read.append([int(places[image]) for _, image in views])
        return chunks(self, views)

    monkeypatch.setattr(StreamedImageFolder, "views_dataloader", watched)
    streamed.cache(tmp_path / "streamed")
    assert read == [list(range(120)) * 2]
    rows_of = np.load(tmp_path / "streamed" / "rows.npy")
    assert sorted(rows_of) == list(range(120))
    assert list(rows_of) != sorted(rows_of)
    of_folder.cache(tmp_path / "streamed", verify=True)
    of_folder.cache(tmp_path / "folder")
    streamed.cache(tmp_path / "folder", verify=True)
    facts = [json.loads((tmp_path / x / "cache.json").read_text()) for x in ("streamed", "folder")]
    assert facts[0]["identity"] == facts[1]["identity"]
    one, other = (losses_of(of_folder.fit(tmp_path / name)) for name in ("streamed", "folder"))
    assert one == pytest.approx(other, rel=1e-4)


def test_what_the_accuracy_depends_on_is_the_validation_images(folder):
    def facts(**settings):
        data = ImageFolder(str(folder), image_size=28, **settings)
        data.setup("fit")
        return validated_on(data)

    assert facts(views=2) == facts(views=3, batch_size=4)
    assert facts() != facts(crop_pct=0.5)
    assert facts() != facts(interpolation="bilinear")
