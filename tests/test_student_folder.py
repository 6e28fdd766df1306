"""What leaves a run: `student/`, as plain timm sees it. Its accuracy there is what `validate` said."""

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import safetensors
import timm
import torch
import yaml
from conftest import ROOT, VIT
from PIL import Image
from test_fit import checkpoint, fit, rows

from distill_dynamics import Backbone, UserError
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNIST, FashionMNISTSample, ImageFolder
from distill_dynamics.files import atomic_write_folder, remove_partial
from distill_dynamics.runs import lease

pytestmark = pytest.mark.usefixtures("no_report")

NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
NAMES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
GREY = {"mean": [0.21], "std": [0.67]}
RGB = {"mean": [0.3, 0.25, 0.6], "std": [0.5, 0.21, 0.9]}
PLAIN = {"model__teacher": None, "model__terms": None, "probe__every_n_epochs": 0, "trainer__max_epochs": 1}
FASTER = {"model__optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 4e-3}}}


@pytest.fixture(autouse=True)
def _no_lease_of_the_test_before():
    """`main` of one process is run again and again here."""
    yield
    lease.release()


class Keep(pl.Callback):
    """Keeps what was measured last."""

    metrics: ClassVar[dict] = {}

    def on_validation_end(self, trainer, pl_module):
        self.metrics.update(trainer.callback_metrics)


def validated(run):
    keep = "--trainer.callbacks+=test_student_folder.Keep"
    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "best", keep])
    return Keep.metrics["val/acc1"].item()


def in_plain_timm(folder, images, targets):
    """Top-1 (%) by timm alone, in a process that does not have this package."""
    script = """
import sys, timm, torch
import numpy as np
from PIL import Image
folder, images, targets = sys.argv[1:]
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
assert not [name for name in sys.modules if name.startswith(("distill_dynamics", "lightning"))]
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
again = timm.data.create_transform(**timm.data.resolve_model_data_config(model, use_test_size=True))
assert repr(transform) == repr(again)
files = open(images).read().splitlines() if images.endswith(".txt") else np.load(images)
files = [Image.open(f).convert("RGB") if isinstance(f, str) else Image.fromarray(f) for f in files]
with torch.no_grad():
    answers = torch.cat([model(batch) for batch in torch.stack([transform(f) for f in files]).split(100)])
print(100 * np.mean(answers.argmax(1).numpy() == np.load(targets)))
"""
    command = [sys.executable, "-c", script, str(folder), str(images), str(targets)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd="/", env={**os.environ, "PYTHONPATH": ""}, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The packaged sample's validation images, as arrays in files."""
    data = FashionMNISTSample()
    data.setup("validate")
    folder = tmp_path_factory.mktemp("sample")
    np.save(folder / "images.npy", data.sources["val"].pixels)
    np.save(folder / "targets.npy", data.sources["val"].targets)
    return folder / "images.npy", folder / "targets.npy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 3 classes, brighter from class to class, none of them square."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 32), ("val", 20)):
        for label, name in enumerate(["ant & bee", "bär", "z'|\"c"]):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 150, (52, 60, 3)) + 45 * label
                pixels[:, :9] = pixels[:, -9:] = 255 - 90 * label  # what a centre crop leaves out
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return root


def on_folder(folder, experiment, **changes):
    data = {"data_dir": str(folder), "batch_size": 16, "num_workers": 0, "augment": {"no_aug": True}, **RGB}
    return experiment(
        **PLAIN,
        **FASTER,
        data={
            "class_path": "distill_dynamics.data.ImageFolder",
            "init_args": data | changes.pop("data", {}),
        },
        trainer__limit_train_batches=1.0,
        trainer__limit_val_batches=1.0,
        **changes,
    )


def files_of(folder, tmp_path):
    data = ImageFolder(str(folder), num_workers=0)
    data.setup("validate")
    source = data.sources["val"]
    (tmp_path / "files.txt").write_text("\n".join(str(source.path(i)) for i in range(len(source.targets))))
    np.save(tmp_path / "targets.npy", source.targets)
    return tmp_path / "files.txt", tmp_path / "targets.npy"


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_a_vit_of_one_channel_in_plain_timm(experiment, tmp_path, sample):
    """With drop path, and a teacher; the normalisation is nobody's default."""
    config = experiment(
        data__init_args={"batch_size": 64, "eval_batch_size": 500, "crop_padding": 1, **GREY},
        trainer__limit_train_batches=40,
        trainer__limit_val_batches=1.0,
        probe__every_n_epochs=0,
        model__lr_images=None,
        **FASTER,
    )
    fit(config, "--name", "r|`x`")
    run = tmp_path / "runs" / "r|`x`"
    said = validated(run)
    assert said > 20
    assert in_plain_timm(run / "student", *sample) == pytest.approx(said, abs=0.11)

    best = max(rows(run)[1:], key=lambda row: float(row["val/acc1"]))
    with safetensors.safe_open(run / "student" / "model.safetensors", "pt") as file:
        told = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
    assert told["epoch"] == int(best["epoch"])
    assert told["val_acc1"] == pytest.approx(said)

    content = config_of(run / "student")
    assert content["architecture"] == "deit_tiny_patch16_224"
    assert content["label_names"] == NAMES
    assert content["model_args"]["drop_path_rate"] == 0.1
    cfg = content["pretrained_cfg"]
    assert (cfg["mean"], cfg["std"], cfg["input_size"]) == ([0.21], [0.67], [1, 28, 28])
    assert (cfg["crop_pct"], cfg["interpolation"], cfg["num_classes"]) == (1.0, "bicubic", 10)
    assert not {"license", "origin_url", "tag", "url", "hf_hub_id"} & cfg.keys()

    student = Backbone(checkpoint=run / "student").eval()
    assert student.name == "deit_tiny_patch16_224"
    assert (student.mean, student.std) == ((0.21,), (0.67,))
    assert student.evaluation == ((28, 28), 1.0, "bicubic", "center")
    assert student.stated_accuracy == pytest.approx(said)
    weights = checkpoint(run, "best")["state_dict"]
    assert all(torch.equal(v, weights[f"student.model.{k}"]) for k, v in student.model.state_dict().items())

    front, body = (run / "student" / "README.md").read_text().split("\n---\n", 1)
    head = yaml.safe_load(front)
    assert head["library_name"] == "timm"
    (result,) = head["model-index"][0]["results"]
    assert head["model-index"][0]["name"] == "r|`x`"
    assert result["metrics"][0]["value"] == pytest.approx(said, abs=1e-3)
    record = json.loads((run / "run.json").read_text())["starts"][0]
    for text in (record["command"], record["data"]["fingerprint"], f"{said:.2f} %", "FashionMNISTSample",
                 f"timm {timm.__version__}", f"{float(rows(run)[0]['teacher/acc1']):.2f} %"):  # fmt: skip
        assert text in body, text


@pytest.mark.parametrize(
    ("student", "data"),
    [
        pytest.param(
            {"name": "convnext_atto", "timm_kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16],
                                                      "num_classes": 3}},
            {"image_size": 40, "crop_pct": 0.8, "interpolation": "bilinear"}, id="convnext-40",
        ),
        pytest.param(
            {"name": "resnet18", "timm_kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16],
                                                 "num_classes": 3}},
            {"image_size": 224, "crop_pct": 0.9}, id="resnet-224", marks=pytest.mark.slow,
        ),
        pytest.param(  # at another size than its img_size
            {"name": "vit_tiny_patch16_224.augreg_in21k", "timm_kwargs": {**VIT, "in_chans": 3, "depth": 1,
                                                "num_classes": 3, "dynamic_img_size": True}},
            {"image_size": 42}, id="vit-dynamic-42", marks=pytest.mark.slow,
        ),
        pytest.param(  # timm says of it that its input size is fixed
            {"name": "mixer_s32_224", "timm_kwargs": {"img_size": 64, "num_classes": 3}},
            {"image_size": 64}, id="mixer-fixed", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_three_channels_of_a_folder_in_plain_timm(experiment, tmp_path, folder, student, data):
    config = on_folder(folder, experiment, model__student=student, data=data)
    fit(config, "--name", "r", "--trainer.max_epochs", "3")
    run = tmp_path / "runs" / "r"
    said = validated(run)
    assert said > 40
    assert in_plain_timm(run / "student", *files_of(folder, tmp_path)) == pytest.approx(said, abs=1.7)
    content = config_of(run / "student")
    assert content["label_names"] == ["ant & bee", "bär", "z'|\"c"]
    assert content["pretrained_cfg"]["input_size"] == [3, data["image_size"], data["image_size"]]
    assert content["pretrained_cfg"]["crop_pct"] == data.get("crop_pct", 0.875)
    # And on as a student again, which keeps what it was trained with.
    again = {"checkpoint": str(run / "student")}
    one = ["--trainer.limit_train_batches", "1"]
    fit(on_folder(folder, experiment, model__student=again, data=data), "--name", "again", *one)
    cfg = config_of(tmp_path / "runs" / "again" / "student")["pretrained_cfg"]
    assert (cfg["mean"], cfg["std"]) == (RGB["mean"], RGB["std"])


def test_a_better_epoch_replaces_the_student_and_a_file_of_before(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "fixtures" / "run", run)
    saved = checkpoint(run)
    (key,) = (key for key in saved["callbacks"] if "val/acc1" in key)
    saved["callbacks"][key]["best_model_score"] *= 0
    saved["callbacks"][key]["best_k_models"] = {
        k: torch.zeros(()) for k in saved["callbacks"][key]["best_k_models"]
    }
    torch.save(saved, run / "checkpoints" / "last.ckpt")
    more = ["--ckpt_path", "last", "--trainer.limit_train_batches", "3", "--probe.every_n_epochs", "0"]
    fit(run / "config.yaml", *more, "--trainer.max_epochs", "3")
    table = rows(run)
    student = Backbone(checkpoint=run / "student")
    assert student.stated_accuracy == float(table[3]["val/acc1"])
    assert not (run / "checkpoints" / "student_best.safetensors").exists()
    assert "after 3 epochs" in (run / "student" / "README.md").read_text()


def test_a_student_that_cannot_be_written_does_not_cost_the_run_its_end(
    experiment, tmp_path, monkeypatch, capsys
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Backbone, "export_folder", full)
    fit(experiment(), "--name", "r")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "was not exported" in line]
    assert "No space left on device" in line
    assert "checkpoints/best.ckpt has it" in line
    run = tmp_path / "runs" / "r"
    assert json.loads((run / "run.json").read_text())["starts"][0]["ended"] == {"epoch": 2, "error": None}
    assert not (run / "student").exists()
    assert not [*run.rglob("*.partial")]


# --- the folder itself


def test_data_modules_know_their_classes(folder):
    data = ImageFolder(str(folder), num_workers=0)
    data.setup("validate")
    assert data.class_names == ["ant & bee", "bär", "z'|\"c"]
    assert FashionMNIST().class_names == FashionMNISTSample().class_names == NAMES


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    place = tmp_path / "student"
    with atomic_write_folder(place) as partial:
        (partial / "a").write_text("old")
        assert not place.exists()
    with pytest.raises(ZeroDivisionError), atomic_write_folder(place) as partial:
        (partial / str(1 // 0)).write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["student"]
    assert [file.name for file in place.iterdir()] == ["a"]
    with atomic_write_folder(place) as partial:
        (partial / "b").write_text("new")
    assert [file.name for file in place.iterdir()] == ["b"]
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("when", ["write", "fsync", "rename"])
def test_a_process_that_is_killed_leaves_no_mixture(tmp_path, when):
    place = tmp_path / "student"
    place.mkdir()
    (place / "a").write_text("old")
    child = os.fork()
    if not child:
        if when != "write":
            setattr(os, when, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        with atomic_write_folder(place) as partial:
            (partial / "b").write_text("new")
            if when == "write":
                os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [file.name for file in place.iterdir()] == ["a"]
    assert len([*tmp_path.iterdir()]) == 2
    remove_partial(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def tiny(**changes):
    return Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1, **changes})


def test_what_a_folder_gives_back(tmp_path):
    source = tiny(global_pool="avg", class_token=False, no_embed_class=True, drop_path_rate=0.1)
    source.set_normalisation([0.2], [0.7])
    source.model.to(torch.bfloat16)
    source.export_folder(tmp_path, ["a\ud800", "b\n---\nc", *"defghijk"][:10])
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    ours = Backbone(checkpoint=tmp_path)
    for one, other in ((plain, source.model), (ours.model, source.model)):
        states = one.state_dict(), other.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], value.float()) for key, value in states[1].items())
    assert plain.pretrained_cfg["label_names"][:2] == ["a\ud800", "b\n---\nc"]
    assert (ours.name, ours.timm_kwargs) == (source.name, source.timm_kwargs)
    # A folder's student of a folder's student is the same, wherever the first one was.
    named = Backbone(f"local-dir:{tmp_path}", pretrained=True)
    named.export_folder(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
    with safetensors.safe_open(tmp_path / "again" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["timm_name"]) == "deit_tiny_patch16_224"
    assert Backbone(checkpoint=tmp_path / "again").mean == (0.2,)


def test_a_head_of_ones_own_on_a_folder(tmp_path):
    tiny().export_folder(tmp_path)
    assert Backbone(checkpoint=tmp_path, timm_kwargs={"num_classes": 4}).num_classes == 4
    assert Backbone("deit_tiny_patch16_224.fb_in1k", checkpoint=tmp_path).num_classes == 10


@pytest.mark.parametrize(
    ("metrics", "stated"),
    [
        ([{"type": "accuracy", "value": 0.815}], 81.5),
        ([{"type": "accuracy", "value": 81.5}, {"type": "loss", "value": 1.0}], 81.5),
        ([{"type": "accuracy", "value": 1.0}, {"type": "accuracy", "value": 2.0}], None),
        ([{"type": "accuracy", "value": "high"}], None),
        ("none", None),
    ],
)
def test_a_foreign_folders_card_states_its_accuracy(tmp_path, metrics, stated):
    timm.models.save_for_hf(tiny().model, str(tmp_path), safe_serialization=True)
    assert Backbone(checkpoint=tmp_path).stated_accuracy is None
    card = {"model-index": [{"name": "x", "results": [{"metrics": metrics}]}]}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# x\n")
    assert Backbone(checkpoint=tmp_path).stated_accuracy == stated


def error_of(**kwargs):
    with pytest.raises(UserError) as caught:
        Backbone(**kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_none_is_one_line(tmp_path):
    assert "give the name of a timm model" in error_of()
    student = tmp_path / "run" / "student"
    tiny().export_folder(student)
    assert f"did you mean {student}" in error_of(checkpoint=tmp_path / "run")
    assert "is of deit_tiny_patch16_224, and not of resnet18" in error_of(name="resnet18", checkpoint=student)
    (student / "model.safetensors").write_bytes(b"1234")
    assert str(student) in error_of(checkpoint=student)
    (student / "model.safetensors").unlink()
    assert "no model.safetensors" in error_of(checkpoint=student)
    config = student / "config.json"
    for content in ("", "[]", "{}", '{"architecture": 3}', '{"architecture": "vit", "model_args": [1]}',
                    '{"architectures": ["ViTForImageClassification"]}', '{"architecture": "nope"}',
                    "[" * 100_000):  # fmt: skip
        config.write_text(content)
        assert str(config) in error_of(checkpoint=student)
