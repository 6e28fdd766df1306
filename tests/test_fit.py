import csv
import json
import shutil
import subprocess

import lightning.pytorch as pl
import numpy as np
import pytest
import safetensors
import timm
import torch
import yaml
from conftest import VIT, blank, fit_once, program, refused, wandb_record
from lightning.pytorch.callbacks import model_checkpoint
from safetensors.torch import load_file

from distill_dynamics import Backbone, Distiller
from distill_dynamics.callbacks import probe_clock
from distill_dynamics.cli import fit_summary
from distill_dynamics.cli.main import main
from distill_dynamics.dynamics import Profile
from distill_dynamics.report.runs import load_runs
from distill_dynamics.runs import directory as run


def fit(config, *args):
    main(["fit", "--config", str(config), *args])


def rows(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def of_teacher(metrics):
    return {name: float(value) for name, value in metrics.items() if "teacher/" in name and value != ""}


def checkpoint(run_dir, name="last"):
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_same(a, b, path=""):
    """Equal to the last bit, whatever the nesting."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def assert_same_run(one, other):
    """Weights, optimiser, metrics and Profiles; not the clock."""
    for name in ("last", "best"):
        a, b = checkpoint(one, name), checkpoint(other, name)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
            assert_same(a[key], b[key], f"{name}.{key}")
    clockless = [
        [{k: v for k, v in r.items() if k != "train/images_per_s"} for r in rows(run)] for run in (one, other)
    ]
    assert clockless[0] == clockless[1]
    files = sorted(p.name for p in (one / "dynamics").iterdir())
    assert files == sorted(p.name for p in (other / "dynamics").iterdir())
    for name in files:
        assert (one / "dynamics" / name).read_bytes() == (other / "dynamics" / name).read_bytes(), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs with W&B offline and all validation images, only to be read."""
    folder = tmp_path_factory.mktemp("finished")
    return fit_once(folder, options=("--wandb.mode", "offline"), trainer__limit_val_batches=1.0)


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied", ignore=shutil.ignore_patterns("wandb"))


def test_run_directory_holds_what_the_design_lists(experiment, tmp_path, capsys):
    config = experiment(trainer__max_epochs=4, probe__every_n_epochs=3, checkpoint_every_n_epochs=2)
    fit(config)
    fit(config, "--trainer.max_epochs", "1")
    runs = tmp_path / "runs"
    assert sorted(p.name for p in runs.iterdir()) == ["tiny-1", "tiny-2"]
    run_dir = runs / "tiny-1"
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == [
        "best.ckpt", "epoch_0002.ckpt", "epoch_0004.ckpt", "last.ckpt",
    ]  # fmt: skip
    assert sorted(p.name for p in (run_dir / "student").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert (run_dir / "report.html").exists()
    assert sorted(p.name for p in (run_dir / "dynamics").iterdir()) == [
        "student_best.npz",
        *(f"student_epoch_{epoch:04d}.npz" for epoch in (0, 3, 4)),
        "teacher.npz",
    ]

    table = rows(run_dir)
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3", "4"]
    assert float(table[0]["teacher/acc1"]) == pytest.approx(10, abs=15)
    assert [bool(row["dynamics/student/entropy/block_02"]) for row in table] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert table[0]["dynamics/teacher/magnitude/block_03"]
    for row in table[1:]:
        total = 0.1 * float(row["train/loss_ce"]) + 0.9 * float(row["train/loss_kd"])
        assert float(row["train/loss"]) == pytest.approx(
            total + 0.2 * float(row["train/loss_projector"]), rel=1e-5
        )
        assert {"val/acc1", "val/acc5", "val/loss", "train/lr", "train/images_per_s"} <= row.keys()
    profile = Profile.load(run_dir / "dynamics" / "student_epoch_0003.npz")
    assert profile.epoch == 3
    assert float(table[3]["dynamics/student/entropy/block_01"]) == profile.entropy[0]
    assert len(profile.probe_indices) == 8
    assert float(table[3]["dynamics/student/signature/nadir"]) == profile.entropy.argmin() + 1
    assert float(table[3]["dynamics/student/signature/massive_channel"]) in profile.peak_channel
    teacher = Profile.load(run_dir / "dynamics" / "teacher.npz")
    assert float(table[0]["dynamics/teacher/signature/nadir"]) == teacher.entropy.argmin() + 1
    last, depths = Profile.load(run_dir / "dynamics" / "student_epoch_0004.npz"), np.linspace(0, 1, 3)
    places = np.linspace(0, 1, len(last.entropy))
    distance = np.interp(depths, places, last.entropy) - teacher.entropy
    assert float(table[4]["dynamics/gap/entropy_distance"]) == pytest.approx(np.sqrt((distance**2).mean()))
    change = last.entropy[0] - profile.entropy[0]
    assert float(table[4]["dynamics/evolution/first_change"]) == pytest.approx(change)
    assert not table[0]["dynamics/evolution/first_change"]

    record = json.loads((run_dir / "run.json").read_text())["starts"][0]
    assert record["seed"] == 1
    assert (
        record["versions"]["torch"] == torch.__version__.split("+")[0]
        or record["versions"]["torch"] == torch.__version__
    )
    assert record["data"]["fingerprint"]
    saved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert saved["name"] == "tiny-1"
    printed = capsys.readouterr().out
    for word in ("teacher", "student, best", "epoch 3", "lowest", str(run_dir)):
        assert word in printed


PROGRAM = "python -m distill_dynamics"


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/a/distill_dynamics/__main__.py", "fit", "--name", "x y"], f"{PROGRAM} fit --name 'x y'"),
        (["/env/bin/distill_dynamics", "fit"], f"{PROGRAM} fit"),
        (["/env/bin/pytest", "tests"], "pytest tests"),
    ],
)
def test_the_command_is_recorded_as_one_types_it(argv, command):
    assert run._command(argv) == command


def test_best_student_loads_in_backbone_and_plain_timm(finished):
    folder = finished
    path = folder / "student" / "model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    kwargs = json.loads(metadata["timm_kwargs"])
    plain = timm.create_model(json.loads(metadata["timm_name"]), checkpoint_path=str(path), **kwargs).eval()
    ours = Backbone(checkpoint=folder / "student").eval()
    lightning = Backbone(checkpoint=folder / "checkpoints" / "best.ckpt").eval()
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(plain(x), ours(x).logits)
        assert torch.equal(plain(x), lightning(x).logits)
    assert ours.mean == lightning.mean == (0.2860,)
    best = max(rows(folder)[1:], key=lambda row: float(row["val/acc1"]))
    assert json.loads(metadata["epoch"]) == int(best["epoch"])


def test_probing_changes_nothing(finished, no_report):
    options = ["--probe.every_n_epochs", "0", "--wandb.mode", "disabled"]
    fit(finished.parent / "tiny.yaml", "--name", "without", *options)
    without = finished.with_name("without")
    assert not (without / "dynamics").exists()
    for key in ("state_dict", "optimizer_states"):
        assert_same(checkpoint(finished)[key], checkpoint(without)[key])


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of four epochs, and its config beside it."""
    return fit_once(
        tmp_path_factory.mktemp("resumed"), "whole", trainer__max_epochs=4, probe__every_n_epochs=2
    )


@pytest.mark.parametrize(
    ("hook", "epoch"), [("on_train_epoch_start", 1), ("on_train_epoch_start", 3), ("batch", 2)]
)
def test_resumed_run_equals_an_uninterrupted_one(
    uninterrupted, tmp_path, monkeypatch, hook, epoch, no_report
):
    config, runs = uninterrupted.with_name("tiny.yaml"), tmp_path / "runs"
    with monkeypatch.context() as patch:
        name = "training_step" if hook == "batch" else hook
        original = getattr(Distiller, name)

        def interrupt(self, *args):
            if self.current_epoch == epoch and (not args or args[1] == 1):
                raise Interrupted
            return original(self, *args)

        patch.setattr(Distiller, name, interrupt)
        with pytest.raises(Interrupted):
            fit(config, "--name", "broken", "--runs_dir", str(runs))
    assert len(rows(runs / "broken")) == epoch + 1
    early = {p: p.read_bytes() for p in (runs / "broken" / "dynamics").iterdir()}
    torch.manual_seed(987)  # a new process starts from another state
    np.random.seed(987)  # noqa: NPY002
    fit(runs / "broken" / "config.yaml", "--ckpt_path", "last")
    assert_same_run(uninterrupted, runs / "broken")
    assert [p.name for p in runs.iterdir()] == ["broken"]
    assert all(path.read_bytes() == content for path, content in early.items())
    starts = json.loads((runs / "broken" / "run.json").read_text())["starts"]
    assert [start["from_epoch"] for start in starts] == [0, epoch]


def test_resume_finds_a_run_that_was_moved(experiment, tmp_path, no_report, blank_pictures):
    fit(experiment(), "--name", "r", "--trainer.max_epochs", "1")
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "runs" / "r", moved)
    saved = checkpoint(moved)
    (key,) = (key for key in saved["callbacks"] if "val/acc1" in key)
    saved["callbacks"][key]["best_model_score"] += 200  # no later epoch can be better
    torch.save(saved, moved / "checkpoints" / "last.ckpt")
    fit(moved / "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--wandb.mode", "offline")
    assert [row["epoch"] for row in rows(moved)] == ["0", "1", "2"]
    assert checkpoint(moved, "best")["epoch"] == 0
    assert Profile.load(moved / "dynamics" / "student_best.npz").epoch == 1
    assert (moved / "config_2.yaml").exists()  # max_epochs is not what it was
    assert not list((tmp_path / "runs").iterdir())
    (folder,) = (moved / "wandb").glob("offline-run-*")
    _, _, summary = wandb_record(folder)  # of a start that has not measured the teacher
    assert len(of_teacher(summary)) > 10
    assert of_teacher(summary) == of_teacher(rows(moved)[0])


def test_a_run_that_is_complete_can_be_resumed_to_no_effect(copied, no_report):
    before = {
        p: p.read_bytes() for p in copied.rglob("*") if p.suffix in (".npz", ".ckpt", ".csv", ".safetensors")
    }
    fit(copied / "config.yaml", "--ckpt_path", "last", "--wandb.mode", "disabled")
    assert all(path.read_bytes() == content for path, content in before.items())


class StopAfterAnEpoch(pl.Callback):
    """What an early-stopping callback does."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


def test_a_run_stopped_early_is_probed_at_its_last_epoch(experiment, tmp_path, no_report):
    stop = [{"class_path": "test_fit.StopAfterAnEpoch"}]
    fit(experiment(trainer__callbacks=stop, trainer__max_epochs=9, probe__every_n_epochs=5), "--name", "r")
    names = sorted(p.name for p in (tmp_path / "runs" / "r" / "dynamics").glob("student_epoch_*"))
    assert names == ["student_epoch_0000.npz", "student_epoch_0001.npz"]


def test_existing_name_is_refused_and_left_alone(finished, capsys):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    error = refused(capsys, "fit", "--config", finished.with_name("tiny.yaml"), "--name", "r")
    assert "--ckpt_path last" in error
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_a_run_that_cannot_start_leaves_no_directory(experiment, tmp_path, capsys):
    config = experiment(model__student__timm_kwargs={**VIT, "depth": 2, "num_classes": 7})
    assert "7 classes" in refused(capsys, "fit", "--config", config)
    assert not list((tmp_path / "runs").iterdir())


def test_a_mistake_on_a_run_that_is_there_takes_nothing_from_it(copied, capsys):
    run_dir = copied
    (run_dir / "metrics.csv").unlink()
    for command in ("fit", "validate"):
        args = ["--config", str(run_dir / "config.yaml"), "--ckpt_path", "last", "--data.mean", "[0.1, 0.2]"]
        refused(capsys, command, *args)
        refused(capsys, command, *args[:-2], "--trainer.devices", "0")
    assert (run_dir / "checkpoints" / "last.ckpt").exists()


def test_validate_test_and_predict(copied, tmp_path, capsys):
    run_dir, config = copied, str(copied / "config.yaml")
    before = sorted(copied.iterdir())
    for command in ("validate", "test"):
        main([command, "--config", config, "--ckpt_path", "last", "--trainer.limit_test_batches", "1.0"])
        assert "acc1" in capsys.readouterr().out
    output = tmp_path / "predictions.csv"
    main(["predict", "--config", config, "--ckpt_path", "last", "--predictions", str(output)])
    with output.open() as file:
        predictions = list(csv.DictReader(file))
    hits = np.mean([row["target"] == row["prediction"] for row in predictions])
    assert hits * 100 == pytest.approx(float(rows(run_dir)[-1]["val/acc1"]), abs=1e-4)
    assert sorted(copied.iterdir()) == before


def test_offline_wandb_run_has_each_metric_on_its_axis_and_the_teacher_in_its_summary(finished):
    settings = yaml.safe_load((finished / "config.yaml").read_text())["wandb"]
    assert settings["group"] == "tiny"  # the config's name, which its seeds share
    (folder,) = (finished / "wandb").glob("offline-run-*")
    defined, history, summary = wandb_record(folder)
    assert {len(times) for times in defined.values()} == {1}
    axes = {name: metric.get("step_metric") for name, (metric,) in defined.items()}
    hidden = {name for name, (metric,) in defined.items() if metric["options"].get("hidden")}
    for measure in ("entropy", "magnitude"):
        for block in (1, 2):
            name = f"dynamics/student/{measure}/block_{block:02d}"
            assert axes[name] == "dynamics/epoch"
            assert name not in hidden
            assert [item["dynamics/epoch"] for item in history if name in item] == [0, 1, 2]
    for name in ("val/acc1", "val/acc5", "val/loss"):
        assert axes[name] == "epoch"
        assert [item["epoch"] for item in history if name in item] == [1, 2]
    assert "train/loss" not in axes  # Lightning's own axis

    assert "dynamics/student/signature/depth" not in hidden
    assert {f"dynamics/student/signature/{name}" for name in ("depth_se", "massive_channel")} <= hidden
    first, *_, last = rows(finished)
    assert {"teacher/acc1", "dynamics/teacher/entropy/block_03"} <= of_teacher(first).keys()
    assert of_teacher(summary) == of_teacher(first)
    assert not any("teacher/" in key for item in history for key in item)
    assert summary["val/acc1"] == float(last["val/acc1"])

    keys = [key for item in history for key in item if key.endswith("._type")]
    pictures = [key.split("/")[1].split("._")[0] for key in keys]
    assert {"entropy_evolution", "entropy_heatmap", "student_spectra"} <= {*pictures}
    assert pictures.count("entropy_evolution") == 4  # of each probe, and with the best student in it
    assert pictures.count("teacher_spectra") == 1
    widths = {item.get("dynamics/entropy_heatmap.width") for item in history} - {None}
    assert widths == {920}  # 460 pixels of a panel, twice


class KeepWeights(pl.Callback):
    """Leaves each rank's loss parameters in a file, as they were before and after training."""

    def __init__(self, folder: str):
        self.folder = folder

    def save(self, trainer, module, when):
        torch.save(module.terms.state_dict(), f"{self.folder}/{when}_{trainer.global_rank}.pt")

    def on_train_start(self, trainer, module):
        self.save(trainer, module, "before")
        probe_clock._image = blank

    def on_train_end(self, trainer, module):
        self.save(trainer, module, "after")
        fit_summary.write_report = lambda *args: None  # in this process: the page is not what is looked at


def test_two_ranks_give_the_profiles_and_the_accuracy_of_one(experiment, tmp_path, no_report):
    changes = {
        "data__init_args__eval_batch_size": 150,
        "trainer__limit_val_batches": 1.0,
        "probe__n_images": 7,
    }
    fit(experiment("one", **changes), "--name", "one", "--trainer.max_epochs", "1")
    keep = {"class_path": "test_fit.KeepWeights", "init_args": {"folder": str(tmp_path)}}
    two = experiment("two", **changes, trainer__callbacks=[keep])
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "1"]
    options += ["--wandb.mode", "offline"]
    command = program("fit", "--config", two, "--name", "two", *options)
    subprocess.run(**command, check=True, capture_output=True, timeout=300)
    before, after = (
        [torch.load(tmp_path / f"{when}_{rank}.pt", weights_only=True) for rank in (0, 1)]
        for when in ("before", "after")
    )
    assert_same(after[0], after[1])
    assert not torch.equal(
        before[0]["projector.0.projector.weight"], after[0]["projector.0.projector.weight"]
    )
    runs = tmp_path / "runs"
    for name in ("teacher", "student_epoch_0000"):
        a, b = (Profile.load(runs / run / "dynamics" / f"{name}.npz") for run in ("one", "two"))
        np.testing.assert_array_equal(a.value_range, b.value_range)
        assert a.probe_id == b.probe_id
        np.testing.assert_array_equal(a.probe_indices, b.probe_indices)
        np.testing.assert_array_equal(a.peak_channel, b.peak_channel)
        assert {"entropy", "magnitude", "effective_rank"} <= a.curves.keys() == b.curves.keys()
        assert a.student_width == b.student_width == (16 if name == "teacher" else None)
        for curve in a.curves:
            np.testing.assert_allclose(a.curves[curve], b.curves[curve], rtol=1e-5)
            np.testing.assert_allclose(a.curve(curve), b.curve(curve), rtol=1e-5)
        assert a.pairs.keys() == b.pairs.keys() == ({"cka"} if "student" in name else set())
        for pairs in a.pairs:
            np.testing.assert_allclose(a.pairs[pairs], b.pairs[pairs], rtol=1e-4)
        for x, y in zip(a.spectrum + a.spectrum_se, b.spectrum + b.spectrum_se, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8)
    records = (json.loads((runs / run / "run.json").read_text()) for run in ("one", "two"))
    a, b = (record["starts"][0]["floors"] for record in records)
    assert a == pytest.approx(b, rel=1e-4)
    assert a.keys() == {"projector"}
    assert rows(runs / "one")[0]["teacher/acc1"] == rows(runs / "two")[0]["teacher/acc1"]
    (folder,) = (runs / "two" / "wandb").glob("offline-run-*")  # of the first rank alone
    assert of_teacher(wandb_record(folder)[2]) == of_teacher(rows(runs / "two")[0])
    # The two ranks' student, evaluated on one: what both measured together must be the same.
    student = Backbone("deit_tiny_patch16_224", checkpoint=runs / "two" / "checkpoints" / "last.ckpt").eval()
    from distill_dynamics.data import FashionMNISTSample

    data = FashionMNISTSample(eval_batch_size=1000)
    data.setup("validate")
    with torch.no_grad():
        hits = torch.cat([student(x).logits.argmax(1) == y for x, y in data.val_dataloader()])
    assert float(rows(runs / "two")[-1]["val/acc1"]) == pytest.approx(
        hits.float().mean().item() * 100, abs=1e-4
    )


def test_a_loss_from_outside_trains_by_class_path_alone(experiment, tmp_path, no_report):
    term = {
        "loss": {"class_path": "test_distiller.MeanGap", "init_args": {"power": 1.0}},
        "weight": 1.0,
        "first": 1,
    }
    fit(experiment(model__terms={"gap": term}), "--name", "r")
    assert checkpoint(tmp_path / "runs" / "r")["state_dict"]["terms.gap.0.scale"].item() != 1.0
    assert float(rows(tmp_path / "runs" / "r")[-1]["train/loss_gap"]) > 0


def assert_exports_the_last(run):
    last = checkpoint(run)["state_dict"]
    exported = load_file(run / "student" / "model.safetensors")
    assert exported
    assert all(torch.equal(value, last[f"student.model.{name}"]) for name, value in exported.items())
    assert not (run / "checkpoints" / "best.ckpt").exists()
    assert "the last student of" in (run / "student" / "README.md").read_text()


@pytest.mark.parametrize("labels", [True, False])
def test_where_no_batch_is_validated_the_last_student_is_exported(
    experiment, tmp_path, no_report, recwarn, labels
):
    without = {"model__terms": {"pooled": {"loss": {"class_path": "distill_dynamics.losses.PooledKD"}}}}
    changes = {} if labels else {**without, "data__init_args__labels": False}
    if not labels:
        student = {**VIT, "depth": 2}
        del student["num_classes"]
        changes["model__student"] = {"name": "deit_tiny_patch16_224", "timm_kwargs": student}
    given = {"trainer__max_epochs": 1, "trainer__limit_val_batches": 0, "probe__every_n_epochs": 0}
    model_checkpoint.warning_cache.clear()  # it says a thing once in a process
    fit(experiment(**given, **changes), "--name", "r")
    told = [str(warning.message) for warning in recwarn]
    assert sum("so there is no best.ckpt, and the last student is exported" in text for text in told) == 1
    assert not [text for text in told if "ModelCheckpoint" in text]
    assert_exports_the_last(tmp_path / "runs" / "r")
    card = (tmp_path / "runs" / "r" / "student" / "README.md").read_text()
    assert "| trained | 1 epoch |" in card
    (record,) = load_runs([tmp_path / "runs" / "r"])
    told = "Nothing was validated: the student is that of the last epoch, whatever its quality."
    assert told in record.warnings
    assert not [line for line in record.warnings if "best student" in line or "metrics.csv" in line]


def test_steps_that_end_in_the_middle_of_an_epoch_leave_a_row_without_validation(
    experiment, tmp_path, no_report, capsys, recwarn
):
    model_checkpoint.warning_cache.clear()  # it says a thing once in a process
    fit(experiment(trainer__max_epochs=1, trainer__max_steps=2, probe__every_n_epochs=0), "--name", "cut")
    run = tmp_path / "runs" / "cut"
    assert not [warning for warning in recwarn if "ModelCheckpoint" in str(warning.message)]
    assert "the last one; for timm" in capsys.readouterr().out
    assert_exports_the_last(run)
    _, last = rows(run)
    assert (last["epoch"], last["step"]) == ("1", "2")
    assert float(last["train/loss"]) > 0
    assert not last.get("val/acc1")
