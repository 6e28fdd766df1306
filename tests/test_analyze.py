import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from conftest import VIT
from PIL import Image

from distill_dynamics import Backbone, UserError
from distill_dynamics.analysis.analyze import analyze
from distill_dynamics.analysis.models import Model, find_weights, labels
from distill_dynamics.analysis.prepare import TransformOverrides
from distill_dynamics.cli.main import main
from distill_dynamics.data.analysis_images import ImageSet
from distill_dynamics.dynamics import Profile

DEIT = "deit_tiny_patch16_224"
SMALL = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2}
PATCH16 = {**SMALL, "img_size": 32, "patch_size": 16}


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


def record(out: Path) -> dict:
    return json.loads((out / "analysis.json").read_text())


def table(out: Path, name: str = "table.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def refused(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        analyze(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FAMILIES = [
    ("cait_xxs24_224", SMALL),
    (DEIT, SMALL),
    ("deit_tiny_distilled_patch16_224", SMALL),
    ("vit_base_patch16_224.mae", SMALL),
    ("vit_small_patch14_dinov2", SMALL),
    ("vit_small_patch14_reg4_dinov2", SMALL),
    ("beit_base_patch16_224", SMALL),
    ("xcit_nano_12_p16_224", PATCH16),
    ("mixer_s32_224", {"img_size": 64}),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 4]},
    ),
    ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}),
    ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
]


def entropy_by_hand(x: torch.Tensor, low: float, high: float) -> float:
    """Mean over positions of the entropy of numpy's histogram of the channels; x [B, C, H, W]."""
    bits = []
    for values in x.permute(0, 2, 3, 1).flatten(0, 2).numpy():
        counts, _ = np.histogram(values, bins=100, range=(low, high))
        p = counts[counts > 0] / counts.sum()
        bits.append(-(p * np.log2(p)).sum())
    return float(np.mean(bits))


@pytest.mark.parametrize(("name", "timm_kwargs"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_a_family_with_timms_transform_and_numpys_histogram(name, timm_kwargs, photos, tmp_path, no_report):
    analyze(
        [Model(name, timm_kwargs=timm_kwargs)],
        ImageSet.of_path(photos),
        tmp_path / "out",
        n_images=3,
        seed=1,
        batch_size=2,
        overrides=TransformOverrides(image_size=32) if name in ("convnext_atto", "resnet18") else None,
    )
    (curve,) = record(tmp_path / "out")["curves"]
    profile = Profile.load(tmp_path / "out" / curve["profile"])
    assert profile.model == name

    torch.manual_seed(1)
    model = timm.create_model(name, **timm_kwargs).eval()
    size = curve["input"]["image_size"]
    config = timm.data.resolve_data_config({}, model=model) | {"input_size": (3, *size)}
    transform = timm.data.create_transform(**config)
    files = record(tmp_path / "out")["images"]["files"]
    images = torch.stack([transform(Image.open(photos / file)) for file in files])
    with torch.no_grad():
        maps = model.forward_intermediates(images, norm=False, intermediates_only=True)
    assert profile.layers == [info["module"] for info in model.feature_info]
    low, high = min(x.min() for x in maps).item(), max(x.max() for x in maps).item()
    np.testing.assert_allclose(profile.value_range, [[low, high]] * len(maps), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(profile.magnitude, [x.abs().mean() for x in maps], rtol=1e-3)
    expected = [entropy_by_hand(x, *edges) for x, edges in zip(maps, profile.value_range, strict=True)]
    np.testing.assert_allclose(profile.entropy, expected, atol=0.02)  # a value at an edge may change bins
    assert profile.entropy_images.shape == (3, len(maps))


def test_what_is_written(photos, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    models = [Model(DEIT, timm_kwargs=SMALL), Model("cait_xxs24_224", timm_kwargs=SMALL, label="my/cait")]
    ranges = ["global", "layer", (-2.5, 3.0)]
    analyze(models, ImageSet.of_path(photos), out, value_ranges=ranges, n_images=4, command="analyze it")
    content = record(out)
    assert content["schema"] == 1
    assert content["command"] == "analyze it"
    assert content["versions"]["timm"] == timm.__version__
    assert content["images"]["source"] == str(photos)
    assert (content["images"]["n"], content["images"]["seed"]) == (4, 0)
    files = content["images"]["files"]
    assert len(set(files)) == 4
    assert sum(file.startswith("a/") for file in files) == 2
    assert all((photos / file).is_file() for file in files)
    assert content["bootstrap"] is False
    keys = [(curve["label"], curve["range"], curve["profile"]) for curve in content["curves"]]
    assert keys == [
        (label, name, f"profiles/{label.replace('/', '_')}/{name}/model.npz")
        for label in (DEIT, "my/cait")
        for name in ("global", "layer", "-2.5,3")
    ]
    first = content["curves"][0]
    assert (first["model"], first["checkpoint"], first["pretrained"], first["epoch"], first["best"]) == (
        DEIT, None, False, None, False,
    )  # fmt: skip
    assert first["timm_kwargs"] == SMALL
    profiles = [Profile.load(out / curve["profile"]) for curve in content["curves"]]
    assert [profile.range_mode for profile in profiles[:3]] == ["global", "layer", "explicit"]
    assert profiles[2].value_range.tolist() == [[-2.5, 3.0]] * 2
    assert len({profile.probe_id for profile in profiles}) == 2  # a crop of 0.9, and one of 1.0
    assert all(len(profile.probe_indices) == 4 for profile in profiles)
    assert np.array_equal(profiles[0].magnitude, profiles[1].magnitude)
    assert len(np.unique(profiles[0].value_range, axis=0)) == 1
    assert len(np.unique(profiles[1].value_range, axis=0)) == 2

    rows = table(out)
    assert [row["label"] for row in rows] == [key[0] for key in keys]
    for row, profile in zip(rows, profiles, strict=True):
        assert float(row["nadir"]) == profile.entropy.argmin() + 1
        assert float(row["depth_left"]) == profile.entropy[0] - profile.entropy.min()
    curves = table(out, "curves.csv")
    assert len(curves) == 6 * 2
    assert [float(row["entropy"]) for row in curves[:2]] == profiles[0].entropy.tolist()
    se = profiles[0].entropy_images.std(axis=0, ddof=1) / np.sqrt(4)
    assert [float(row["entropy_se"]) for row in curves[:2]] == pytest.approx(se)
    assert not {"entropy_low", "depth_left_low"} & {*curves[0], *rows[0]}

    assert "<html" in (out / "report.html").read_text()
    drawn = {path.suffix for path in (out / "figures").iterdir()}
    assert drawn == {".png", ".pdf"}
    assert not list(out.rglob("*partial*"))
    printed = capsys.readouterr().out
    for word in (
        "my/cait",
        "random weights",
        "-2.5,3",
        "lowest",
        "magnitude",
        "flatness",
        "median",
        str(out),
    ):
        assert word in printed


def test_bootstrap_intervals_in_the_place_of_standard_errors(photos, tmp_path, no_report, capsys):
    out = tmp_path / "out"
    analyze([Model(DEIT, timm_kwargs=SMALL)], ImageSet.of_path(photos), out, n_images=6, bootstrap=True)
    profile = Profile.load(out / record(out)["curves"][0]["profile"])
    rng = np.random.default_rng(99)
    draws = profile.entropy_images[rng.integers(6, size=(20_000, 6))].mean(axis=1)
    rows = table(out, "curves.csv")
    for block, row in enumerate(rows):
        low, high = np.quantile(draws[:, block], [0.025, 0.975])
        width = high - low
        assert float(row["entropy_low"]) == pytest.approx(low, abs=0.1 * width)
        assert float(row["entropy_high"]) == pytest.approx(high, abs=0.1 * width)
    (row,) = table(out)
    nadir = profile.entropy.argmin()
    for side, end in (("left", 0), ("right", -1)):
        low, high = np.quantile(draws[:, end] - draws[:, nadir], [0.025, 0.975])
        assert float(row[f"depth_{side}_low"]) == pytest.approx(low, abs=0.1 * (high - low))
        assert float(row[f"depth_{side}_high"]) == pytest.approx(high, abs=0.1 * (high - low))
    assert record(out)["bootstrap"] is True
    assert " to " in capsys.readouterr().out


def test_one_image_has_no_errors_and_no_verdict(photos, tmp_path, no_report, capsys):
    out = tmp_path / "out"
    images = ImageSet.of_path(photos / "a" / "0.png")
    analyze([Model(DEIT, timm_kwargs=SMALL)], images, out, n_images=1, bootstrap=True)
    assert table(out, "curves.csv")[0]["entropy_se"] == ""
    assert not {"u_shaped", "magnitude_agrees", "three_phases"} & table(out)[0].keys()
    assert "unknown: one image" in capsys.readouterr().out


def test_blocks_have_their_own_numbers_where_some_are_left_out(photos, tmp_path, no_report, capsys):
    out = tmp_path / "out"
    model = Model(DEIT, timm_kwargs={**SMALL, "depth": 7})
    analyze([model], ImageSet.of_path(photos), out, n_images=4, layers=[2, 5, -1])
    rows = table(out, "curves.csv")
    assert [(row["block"], row["layer"]) for row in rows] == [
        ("2", "blocks.1"), ("5", "blocks.4"), ("7", "blocks.6"),
    ]  # fmt: skip
    lowest = {name: min(rows, key=lambda row: float(row[name]))["block"] for name in ("entropy", "magnitude")}
    (row,) = table(out)
    assert int(float(row["nadir"])) == int(lowest["entropy"])
    assert int(float(row["magnitude_nadir"])) == int(lowest["magnitude"])
    assert f"lowest at {lowest['magnitude']}" in capsys.readouterr().out


def test_batches_are_counted_while_they_run(photos, tmp_path, no_report, capsys):
    images, model = ImageSet.of_path(photos), Model(DEIT, timm_kwargs=SMALL)
    analyze([model], images, tmp_path / "out", n_images=6, batch_size=2)
    shown = capsys.readouterr().err
    assert f"{DEIT}: magnitude and spectrum" in shown
    assert f"{DEIT}: entropy" in shown
    assert shown.count("0/3") >= 2


def test_random_weights_are_those_of_the_seed(photos, tmp_path, no_report):
    state = torch.random.get_rng_state()
    found = []
    for i, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(i)
        analyze([Model(DEIT, timm_kwargs=SMALL)], ImageSet.of_path(photos), out, n_images=6, seed=seed)
        found.append(Profile.load(out / record(out)["curves"][0]["profile"]).magnitude)
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_is_fed_as_told(photos, tmp_path, no_report):
    out = tmp_path / "out"
    told = TransformOverrides(
        image_size=40, crop_pct=0.5, interpolation="nearest", mean=[0.1, 0.2, 0.3], std=[1, 2, 3]
    )
    model = Model("convnext_atto", timm_kwargs={"depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4]})
    analyze([model], ImageSet.of_path(photos), out, n_images=2, overrides=told, layers=[1, -1], bins=7)
    (curve,) = record(out)["curves"]
    assert curve["input"] == {
        "image_size": [40, 40],
        "crop_pct": 0.5,
        "interpolation": "nearest",
        "crop_mode": "center",
        "mean": [0.1, 0.2, 0.3],
        "std": [1, 2, 3],
    }
    profile = Profile.load(out / curve["profile"])
    assert (profile.bins, profile.layers) == (7, ["stages.0", "stages.3"])
    transform = timm.data.create_transform(
        40, interpolation="nearest", crop_pct=0.5, mean=(0.1, 0.2, 0.3), std=(1, 2, 3)
    )
    images = torch.stack([transform(Image.open(photos / file)) for file in record(out)["images"]["files"]])
    torch.manual_seed(0)
    backbone = timm.create_model(model.name, **model.timm_kwargs).eval()
    with torch.no_grad():
        maps = backbone.forward_intermediates(images, indices=[0, 3], norm=False, intermediates_only=True)
    np.testing.assert_allclose(profile.magnitude, [x.abs().mean() for x in maps], rtol=1e-4)


# --- weights ----------------------------------------------------------------------------------------


def test_an_evolution_of_the_reference_implementations_files(photos, tmp_path, no_report):
    states = {}
    for number, name in enumerate(
        ("checkpoint_epoch_60", "checkpoint_epoch_120", "checkpoint_epoch_9", "model_best")
    ):
        torch.manual_seed(number)
        states[name] = timm.create_model(DEIT, **SMALL).state_dict()
        content = {
            "model": states[name],
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 7,
            "model_ema": timm.create_model(DEIT, **SMALL).state_dict(),
            "scaler": {},
            "args": argparse.Namespace(lr=5e-4, model=DEIT, distillation_type="soft"),
        }
        torch.save(content, tmp_path / f"{name}.pth")
    out = tmp_path / "out"
    model = Model(DEIT, checkpoint=str(tmp_path / "*.pth"), timm_kwargs=SMALL)
    analyze([model], ImageSet.of_path(photos), out, n_images=2)
    curves = record(out)["curves"]
    assert [(curve["epoch"], curve["best"], Path(curve["profile"]).name) for curve in curves] == [
        (9, False, "epoch_0009.npz"),
        (60, False, "epoch_0060.npz"),
        (120, False, "epoch_0120.npz"),
        (None, True, "best.npz"),
    ]
    for curve in curves:
        stem = Path(curve["checkpoint"]).stem
        profile = Profile.load(out / curve["profile"])
        assert profile.epoch == curve["epoch"]
        plain = timm.create_model(DEIT, **SMALL).eval()
        plain.load_state_dict(states[stem])
        transform = timm.data.create_transform(
            **timm.data.resolve_data_config({}, model=plain) | {"input_size": (3, 28, 28)}
        )
        images = torch.stack(
            [transform(Image.open(photos / file)) for file in record(out)["images"]["files"]]
        )
        with torch.no_grad():
            maps = plain.forward_intermediates(images, norm=False, intermediates_only=True)
        np.testing.assert_allclose(profile.magnitude, [x.abs().mean() for x in maps], rtol=1e-4)


def test_an_evolution_of_a_fit_is_what_the_fit_saw(experiment, tmp_path, no_report):
    main(["fit", "--config", str(experiment(checkpoint_every_n_epochs=1)), "--trainer.max_epochs", "2"])
    run = tmp_path / "runs" / "tiny-1"
    folder = run / "checkpoints"
    (folder / "epoch_0001.ckpt").rename(folder / "renamed_77.ckpt")  # the content knows better
    out = tmp_path / "out"
    files = [
        str(folder / "renamed_77.ckpt"),
        str(folder / "epoch_0002.ckpt"),
        str(run / "student"),
    ]
    images = ImageSet.of_sample()
    analyze([Model(DEIT, checkpoint=files)], images, out, n_images=8)
    curves = record(out)["curves"]
    assert [(curve["epoch"], curve["best"]) for curve in curves][:2] == [(1, False), (2, False)]
    assert curves[2]["best"]
    dynamics = {1: "student_epoch_0001", 2: "student_epoch_0002"}
    for curve in curves:
        name = "student_best" if curve["best"] else dynamics[curve["epoch"]]
        seen, found = Profile.load(run / "dynamics" / f"{name}.npz"), Profile.load(out / curve["profile"])
        assert found.probe_id == seen.probe_id
        assert found.epoch == seen.epoch
        np.testing.assert_allclose(found.entropy, seen.entropy, rtol=1e-6)


def test_a_student_remembers_the_crop_it_was_trained_with(experiment, tmp_path):
    data = {
        "batch_size": 16,
        "eval_batch_size": 100,
        "image_size": 28,
        "crop_pct": 0.7,
        "interpolation": "bilinear",
    }
    resnet = {
        "name": "resnet18",
        "timm_kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "in_chans": 1, "num_classes": 10},
    }
    config = experiment(
        model__student=resnet,
        model__teacher=None,
        model__terms=None,
        data__init_args=data,
        trainer__max_epochs=1,
        probe__every_n_epochs=0,
    )
    main(["fit", "--config", str(config)])
    folder = tmp_path / "runs" / "tiny-1" / "checkpoints"
    for name in ("last.ckpt", "../student"):
        backbone = Backbone("resnet18", checkpoint=folder / name)
        assert backbone.evaluation == ((28, 28), 0.7, "bilinear", "center")


def test_weights_of_one_file_are_no_evolution(tmp_path):
    path = tmp_path / "epoch_0030.ckpt"
    (weights,) = find_weights(Model(DEIT, checkpoint=str(path)))
    assert weights == (str(path), None, False)
    assert find_weights(Model(DEIT)) == [(None, None, False)]
    path.touch()
    (weights,) = find_weights(Model(DEIT, checkpoint=str(tmp_path / "epoch_*.ckpt")))
    assert weights == (str(path), 30, False)


def test_a_file_whose_name_is_a_pattern(tmp_path):
    path = tmp_path / "lr[0.1].pth"
    path.touch()
    assert find_weights(Model(DEIT, checkpoint=str(path))) == [(str(path), None, False)]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["epoch_30.pth", "x/epoch_0030.pth"], "epoch_30.pth and .*x/epoch_0030.pth are both of epoch 30"),
        (["best.pth", "x/model_best.pth"], "are both the best one"),
        (["epoch_30.pth", "final.pth"], "final.pth tells no epoch"),
    ],
)
def test_checkpoints_that_make_no_evolution(tmp_path, files, words):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=words):
        find_weights(Model(DEIT, checkpoint=str(tmp_path / "**" / "*.pth")))


def test_a_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(UserError, match=r"no file matches .*none_\*\.pth"):
        find_weights(Model(DEIT, checkpoint=str(tmp_path / "none_*.pth")))


def test_labels_tell_models_apart():
    assert list(labels([Model("a"), Model("b"), Model("a"), Model("a", label="c")])) == [
        "a-1",
        "b",
        "a-2",
        "c",
    ]
    for pair in (
        [Model("a", label="x"), Model("b", label="x")],
        [Model("a"), Model("a"), Model("b", label="a-1")],
        [Model("b", label="x/y"), Model("b", label="x:y")],
    ):
        with pytest.raises(UserError, match="two models are labelled"):
            labels(pair)


# --- what is refused --------------------------------------------------------------------------------


def test_an_analysis_is_not_overwritten(photos, tmp_path, no_report):
    out = tmp_path / "out"
    images, models = ImageSet.of_path(photos), [Model(DEIT, timm_kwargs=SMALL)]
    analyze(models, images, out, n_images=2)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "holds an analysis already; choose another folder" in refused(models, images, out, n_images=3)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "holds other files" in refused(models, images, photos)
    with pytest.raises(FileExistsError):
        analyze(models, images, photos / "a" / "0.png")


def test_a_stopped_analysis_can_be_made_again(photos, tmp_path, no_report):
    out = tmp_path / "out"
    good, images = Model(DEIT, timm_kwargs=SMALL), ImageSet.of_path(photos)
    torch.save(timm.create_model(DEIT, **SMALL).state_dict(), tmp_path / "e_1.pth")
    torch.save({}, tmp_path / "e_2.pth")
    broken = Model(DEIT, checkpoint=str(tmp_path / "e_*.pth"), timm_kwargs=SMALL)
    assert "e_2.pth" in refused([broken], images, out, n_images=2)
    assert not (out / "analysis.json").exists()
    assert (out / "profiles" / DEIT / "global" / "epoch_0001.npz").exists()
    analyze([good], images, out, n_images=2)
    assert record(out)["curves"]


def test_a_mistake_in_the_last_model_is_found_before_the_first_is_run(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "distill_dynamics.analysis.analyze.profile_ranges", lambda *args, **kwargs: pytest.fail("too late")
    )
    models = [Model(DEIT, timm_kwargs=SMALL), Model("cait_xxs24_22")]
    out = tmp_path / "out"
    assert "did you mean 'cait_xxs24_224'" in refused(models, ImageSet.of_path(photos), out, n_images=2)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overrides": TransformOverrides(image_size=64)}, "give --image_size 28"),
        ({"overrides": TransformOverrides(crop_pct=1.5)}, "--crop_pct above 0 and at most 1"),
        ({"overrides": TransformOverrides(std=[0.0])}, "--std"),
        ({"layers": [9]}, "layer 9 does not exist"),
        ({"n_images": 7}, "7 is more than the 6 images"),
        ({"n_images": 0}, "--n_images is at least 1"),
        ({"seed": -1}, "--seed"),
        ({"overrides": TransformOverrides(std=[0.5, 0.5])}, "--std: 2 numbers for the 3 channels"),
        ({"models": [Model(DEIT, checkpoint=[])]}, "no file is named"),
        ({"batch_size": 0}, "--batch_size"),
        ({"bins": 0}, "bins must be at least 1"),
        ({"models": [Model(DEIT, timm_kwargs={**SMALL, "in_chans": 4})]}, "takes 4 channels"),
        ({"value_ranges": [(1.0, 0.0)]}, "lo < hi"),
        (
            {"models": [Model("convnext_atto")], "overrides": TransformOverrides(image_size=16)},
            "takes no images of 16 x 16",
        ),
        (
            {"models": [Model("resnet18")], "overrides": TransformOverrides(image_size=10**8)},
            "give another --image_size",
        ),
    ],
)
def test_what_is_refused(photos, tmp_path, change, words):
    settings = {"models": [Model(DEIT, timm_kwargs=SMALL)], "n_images": 2, **change}
    assert words in refused(images=ImageSet.of_path(photos), out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_of_the_users_is_left(photos, tmp_path):
    (tmp_path / "out").mkdir()
    refused([Model(DEIT, timm_kwargs=SMALL)], ImageSet.of_path(photos), tmp_path / "out", n_images=7)
    assert (tmp_path / "out").is_dir()


def test_a_gpu_that_is_not_there(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in refused([Model(DEIT)], ImageSet.of_path(photos), tmp_path / "out", device="cuda")


def test_grey_models_and_the_sample(tmp_path, no_report):
    out = tmp_path / "out"
    analyze([Model(DEIT, timm_kwargs=VIT | {"depth": 2})], ImageSet.of_sample(), out, n_images=5)
    content = record(out)
    assert (
        content["images"]["indices"]
        == Profile.load(out / content["curves"][0]["profile"]).probe_indices.tolist()
    )
    assert len(content["curves"][0]["input"]["mean"]) == 1
