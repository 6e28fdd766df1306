"""From a student without a head to classes: fine-tuned, or the head alone, by what is packaged."""

import warnings
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import refused
from scripts.make_images import make

from distill_dynamics import Backbone
from distill_dynamics.cli.main import main

TINY = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
SHORT = "--data.image_size 32 --data.batch_size 4 --data.num_workers 0 --trainer.max_epochs 1"
SHORT += " --trainer.accelerator cpu --wandb.mode disabled --data.data_dir images"
pytestmark = pytest.mark.usefixtures("no_report", "blank_pictures")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes of images, and a headless student as a folder, a file and a checkpoint of fit."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    make(folder / "images", classes=3, train=4, val=2)
    torch.manual_seed(0)
    one = Backbone("deit_tiny_patch16_224", timm_kwargs=TINY)
    one.export_folder(folder / "student")
    one.export(folder / "student.safetensors")
    state = {f"student.{name}": value for name, value in one.state_dict().items()}
    content = {"distill_dynamics": {"student": one.description()}, "state_dict": state, "epoch": 0}
    torch.save(content, folder / "best.ckpt")
    return folder


@pytest.fixture(autouse=True)
def inside(root, monkeypatch):
    monkeypatch.chdir(root)


def fit(recipe, name, *words, checkpoint="student"):
    given = ["--model.student.checkpoint", checkpoint, "--name", name, *words]
    if recipe == "finetune":
        given += ["--probe.n_images", "6"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        main(["fit", "--config", f"packaged:label_free/{recipe}", *SHORT.split(), *given])
    return [str(warning.message) for warning in told]


def weights(place):
    return timm.create_model(f"local-dir:{place}", pretrained=True).state_dict()


@pytest.mark.parametrize("checkpoint", ["student", "student.safetensors", "best.ckpt"])
@pytest.mark.parametrize("recipe", ["finetune", "linear"])
def test_the_head_is_new_and_said_to_be(recipe, checkpoint, capsys):
    run = f"{recipe}-{Path(checkpoint).suffix[1:] or 'folder'}"
    told = fit(recipe, run, checkpoint=checkpoint)
    assert any("it has no head, and the model has a fresh one of 3 (num_classes)" in line for line in told)
    assert not any("eval mode" in line for line in told)  # of Lightning
    printed = capsys.readouterr().out
    assert f"begins from {checkpoint}, with a new head" in printed
    assert ("frozen but for its head, 51 parameters of 3 classes" in printed) == (recipe == "linear")
    before, after = weights("student"), weights(f"runs/{run}/student")
    assert after.keys() - before.keys() == {"head.weight", "head.bias"}
    same = [torch.equal(value, after[key]) for key, value in before.items()]
    assert all(same) if recipe == "linear" else not any(same)
    saved = yaml.safe_load(Path(f"runs/{run}/config.yaml").read_text())["model"]
    assert saved["student"]["init_args"]["timm_kwargs"] == {"num_classes": 3}


def test_a_head_of_other_classes_is_left_out_and_said_to_be(root, capsys):
    one = Backbone("deit_tiny_patch16_224", timm_kwargs={**TINY, "num_classes": 7})
    one.export_folder(root / "seven")
    told = fit("linear", "seven", checkpoint="seven")
    (line,) = [line for line in told if "head" in line]
    assert "its head of 7 classes is left out, and the model has a fresh one of 3 (num_classes)" in line
    one = Backbone("deit_tiny_patch16_224", timm_kwargs={**TINY, "num_classes": 3})
    one.export_folder(root / "three")
    told = fit("linear", "three", checkpoint="three")
    assert not [line for line in told if "head" in line]
    printed = capsys.readouterr().out
    assert "begins from seven, with a new head" in printed
    assert "begins from three\n" in printed


@pytest.mark.parametrize("checkpoint", ["student", "student.safetensors", "best.ckpt"])
def test_position_embeddings_for_another_size_are_resampled_and_said_to_be(checkpoint):
    run = f"larger-{Path(checkpoint).suffix[1:] or 'folder'}"
    larger = ["--data.image_size", "48", "--model.student.timm_kwargs", "{img_size: 48}"]
    told = fit("linear", run, *larger, checkpoint=checkpoint)
    line = "position embeddings resampled to this input size: pos_embed from [1, 5, 16] to [1, 10, 16]"
    assert any(line in one for one in told)
    after = weights(f"runs/{run}/student")
    expected = timm.layers.resample_abs_pos_embed(weights("student")["pos_embed"], (3, 3))
    torch.testing.assert_close(after["pos_embed"], expected)


@pytest.mark.parametrize(
    ("changed", "shape"), [({"in_chans": 1}, "[16, 1, 16, 16]"), ({"patch_size": 8}, "[16, 3, 8, 8]")]
)
def test_other_channels_or_patches_are_not_said_to_be_position_embeddings(changed, shape):
    with pytest.warns(UserWarning, match="as timm does") as told:
        Backbone(checkpoint="student", timm_kwargs=changed)
    lines = [str(warning.message) for warning in told]
    assert f"patch_embed.proj.weight from [16, 3, 16, 16] to {shape}" in "".join(lines)
    of_places = [line for line in lines if "position embeddings" in line]
    assert len(of_places) == ("patch_size" in changed)
    assert all("pos_embed from" in line for line in of_places)


def test_another_size_without_it_is_a_line(capsys):
    words = [*SHORT.split(), "--data.image_size", "48", "--model.student.checkpoint", "student"]
    line = refused(capsys, "fit", "--config", "packaged:label_free/linear", *words)
    assert "model.student: deit_tiny_patch16_224 takes 32 x 32 images and the data give 48 x 48" in line


def test_what_a_run_without_labels_leaves_gets_a_head(root):
    """Its student/ folder and its best.ckpt are of the same weights."""
    loss = {"class_path": "distill_dynamics.losses.PooledKD"}
    model = {"name": "deit_tiny_patch16_224", "timm_kwargs": TINY}
    settings = {"data_dir": "images", "image_size": 32, "batch_size": 4, "num_workers": 0, "labels": False}
    config = {
        "model": {"student": model, "teacher": model, "terms": {"pooled": {"loss": loss, "weight": 1.0}}},
        "data": {"class_path": "distill_dynamics.data.ImageFolder", "init_args": settings},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "probe": {"every_n_epochs": 0},
        "wandb": {"mode": "disabled"},
    }
    Path("label_free.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "label_free.yaml", "--name", "pre"])
    before = weights("runs/pre/student")
    assert not any(key.startswith("head") for key in before)
    assert not all(torch.equal(value, weights("student")[key]) for key, value in before.items())
    for name, checkpoint in (
        ("of_folder", "runs/pre/student"),
        ("of_best", "runs/pre/checkpoints/best.ckpt"),
    ):
        told = fit("linear", name, checkpoint=checkpoint)
        assert any(
            "it has no head, and the model has a fresh one of 3 (num_classes)" in line for line in told
        )
        after = weights(f"runs/{name}/student")
        assert all(torch.equal(value, after[key]) for key, value in before.items())
