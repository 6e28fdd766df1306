"""What goes wrong before the first step: one line, status 2, and nothing is left of the start."""

import json
import random
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, VIT, refused
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from test_fit import fit
from torch import nn

from distill_dynamics import Backbone, Distiller, UserError, yaml_text
from distill_dynamics.cli.main import main
from distill_dynamics.losses import SpectralKD
from distill_dynamics.train.dry_run import dry_run
from distill_dynamics.train.terms import Term

CALLED: list[str] = []
NAME = ["--name", "r"]


@pytest.fixture(autouse=True)
def _quick(no_report):
    CALLED.clear()


class Fails(pl.Callback):
    """Raises an error of a class in one of Trainer's hooks."""

    def __init__(self, hook: str, error: str = "RuntimeError"):
        setattr(self, hook, self.fail)
        self.error = error

    def fail(self, *args, **kwargs):
        raise {"RuntimeError": RuntimeError, "KeyboardInterrupt": KeyboardInterrupt, "OSError": OSError}[
            self.error
        ]("x")


class TwoNumbers(nn.Module):
    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()

    def forward(self, student_map, teacher_map):
        return student_map.mean(0)


class Remembers(nn.Module):
    """Draws numbers, and changes a buffer, as a memory bank does."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.calls = 0
        self.norm = nn.BatchNorm2d(student_channels)

    def forward(self, student_map, teacher_map):
        self.seen += 1
        self.calls += 1
        return self.norm(student_map).mean() + torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002


def says_nothing(*args, **kwargs):
    CALLED.append("says_nothing")


def refused_at_once(capsys, tmp_path, config, *args):
    """The one line that the fit is refused with, which has left nothing behind."""
    (line,) = refused(capsys, "fit", "--config", config, *NAME, *args).splitlines()
    assert not (tmp_path / "runs" / "r").exists()
    return line


TINY_RESNET = {"name": "test_resnet", "timm_kwargs": {"in_chans": 1, "num_classes": 10}}
CONVNEXT = {"name": "convnext_atto", "timm_kwargs": {"in_chans": 1, "num_classes": 10}}


def term(loss, **settings):
    return {"x": {"loss": {"class_path": loss}, "last": 1, **settings}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model__optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": -1.0}}},
            ["model.optimizer", "-1"],
        ),
        (
            {"model__optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": float("nan")}}},
            ["model.optimizer", "nan"],
        ),
        (
            {"model__optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": float("inf")}}},
            ["lr must be a finite"],
        ),
        ({"model__label_smoothing": 2.0}, ["model.label_smoothing must be between 0 and 1, not 2"]),
        ({"model__label_smoothing": float("nan")}, ["model.label_smoothing", "nan"]),
        ({"model__temperature": 0.0}, ["model.temperature must be more than 0"]),
        ({"model__temperature": float("inf")}, ["model.temperature"]),
        ({"model__lr_images": 0}, ["model.lr_images must be at least 1"]),
        ({"model__alpha": float("nan")}, ["model.alpha", "between 0 and 1"]),
        ({"model__terms": term("distill_dynamics.losses.SpectralKD", weight=-0.1)}, ["model.terms.x.weight"]),
        ({"model__terms": {"a.b": term("distill_dynamics.losses.SpectralKD")["x"]}}, ["'a.b' is no name"]),
        ({"model__terms": {"keys": term("distill_dynamics.losses.SpectralKD")["x"]}}, ["'keys' is taken"]),
        ({"trainer__accumulate_grad_batches": 0}, ["trainer.accumulate_grad_batches", "at least 1"]),
        ({"trainer__gradient_clip_val": -1.0}, ["trainer.gradient_clip_val", "0 or more"]),
        ({"seed_everything": -1}, ["-1", "bounds"]),
        (
            {"model__student": CONVNEXT, "model__terms": {}},
            ["model.student: convnext_atto cannot take 28 x 28 images"],
        ),
        (
            {"model__teacher": CONVNEXT, "model__terms": {}},
            ["model.teacher: convnext_atto cannot take 28 x 28 images"],
        ),
        (
            {"model__student": TINY_RESNET, "model__terms": {}, "data__init_args__batch_size": 1},
            ["test_resnet has batch norm", "1 of these 28 x 28"],
        ),
        (
            {"model__terms": term("test_first_step.TwoNumbers")},
            ["model.terms.x: TwoNumbers", "gives 16x2x2, not one number"],
        ),
        (
            {"model__terms": term("test_first_step.says_nothing")},
            ["terms.x.loss: test_first_step.says_nothing is no class", "not called"],
        ),
        (
            {
                "trainer__logger": {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": {"save_dir": "x"},
                }
            },
            ["tensorboard", "is not installed"],
        ),
        (
            {"trainer__callbacks": [{"class_path": "test_first_step.Fails", "init_args": {"hook": "setup"}}]},
            ["RuntimeError: x (in ", "test_first_step.py:"],
        ),
        (
            {
                "trainer__callbacks": [
                    {"class_path": "test_first_step.Fails", "init_args": {"hook": "on_train_start"}}
                ]
            },
            ["RuntimeError: x"],
        ),
    ],
)
def test_what_keeps_a_training_from_its_first_step_is_a_line(experiment, tmp_path, capsys, changes, words):
    line = refused_at_once(capsys, tmp_path, experiment(**changes))
    for word in words:
        assert word in line
    assert CALLED == []


@pytest.mark.parametrize("hook", ["setup", "on_train_start"])
def test_ctrl_c_before_the_first_step_leaves_nothing(experiment, tmp_path, capsys, hook):
    callback = {
        "class_path": "test_first_step.Fails",
        "init_args": {"hook": hook, "error": "KeyboardInterrupt"},
    }
    words = ["--config", experiment(), *NAME, "--trainer.callbacks", json.dumps([callback])]
    assert refused(capsys, "fit", *words, status=130) == "error: stopped before the first step\n"
    assert not (tmp_path / "runs" / "r").exists()


def test_an_error_after_the_first_step_keeps_the_run_and_its_traceback(experiment, tmp_path):
    callback = {"class_path": "test_first_step.Fails", "init_args": {"hook": "on_train_batch_end"}}
    with pytest.raises(RuntimeError, match="x"):
        fit(experiment(), *NAME, "--trainer.callbacks", json.dumps([callback]))
    assert (
        json.loads((tmp_path / "runs" / "r" / "run.json").read_text())["starts"][0]["ended"]["error"]
        == "RuntimeError: x"
    )


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../../escape", "/absolute", "a/b", "a\nb", "a\0b"])
def test_a_name_is_one_component_of_a_path(experiment, tmp_path, capsys, name):
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / ".last.ckpt.1.partial").touch()
    before = sorted(tmp_path.rglob("*"))
    words = ["--config", experiment(), "--name", name, "--ckpt_path", "auto"]
    (line,) = refused(capsys, "fit", *words).splitlines()
    assert line.startswith(f"error: --name {name!r}: ")
    assert sorted(set(tmp_path.rglob("*")) - {tmp_path / "tiny.yaml"}) == before


@pytest.mark.parametrize(("mode", "code"), [("", None), ("  ", None), ("ofline", 2)])
def test_an_empty_wandb_mode_counts_as_unset_and_a_wrong_one_is_a_line(
    experiment, tmp_path, capsys, monkeypatch, mode, code
):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_PROJECT", "")
    monkeypatch.setenv("LOCAL_RANK", "")
    if code is None:
        fit(experiment(probe__every_n_epochs=0, trainer__max_epochs=1), *NAME)
        assert [*(tmp_path / "runs" / "r" / "wandb").glob("offline-run-*")]
        return
    assert (
        "WANDB_MODE is online, offline or disabled, not 'ofline'; did you mean 'offline'"
        in refused_at_once(capsys, tmp_path, experiment())
    )


def test_resuming_with_what_the_checkpoint_is_not_of_is_a_line_and_leaves_no_config(
    experiment, tmp_path, capsys
):
    config, run_dir = experiment(trainer__max_epochs=1), tmp_path / "runs" / "r"
    fit(config, *NAME)
    before = sorted(run_dir.iterdir())
    projector = {"p": {"loss": {"class_path": "distill_dynamics.losses.ProjectorKD"}, "last": 1}}
    for changes, words in (
        ({"model__terms": projector}, ["model.terms.p was added", "model.terms.projector was left out"]),
        ({"model__student__timm_kwargs__depth": 3}, ["model.student's depth was 2 and is 3"]),
        ({"model__student__timm_kwargs__embed_dim": 32}, ["embed_dim was 16 and is 32"]),
        (
            {"model__optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
            ["AdamW", "SGD"],
        ),
        (
            {
                "trainer__callbacks": [
                    {"class_path": "test_first_step.Fails", "init_args": {"hook": "on_train_start"}}
                ],
                "model__alpha": 0.5,
            },
            ["RuntimeError: x"],
        ),
    ):
        config = experiment(**{"trainer__max_epochs": 2, **changes})
        said = refused(capsys, "fit", "--config", config, *NAME, "--ckpt_path", "auto")
        assert "Traceback" not in said
        line = said.splitlines()[-1]  # above it stand the settings that have changed
        assert line.startswith("error: ")
        for word in words:
            assert word in line
        assert sorted(run_dir.iterdir()) == before


@pytest.mark.parametrize("content", ["", '{"id": "x", "st', "[]", '{"starts": []}'])
def test_a_broken_record_of_a_run_is_a_line(experiment, tmp_path, capsys, content):
    run_dir = tmp_path / "runs" / "r"
    run_dir.mkdir(parents=True)
    (run_dir / "run.json").write_text(content)
    (line,) = refused(capsys, "fit", "--config", experiment(), *NAME, "--ckpt_path", "auto").splitlines()
    assert line.startswith(f"error: {run_dir}/run.json: cut short or altered")
    assert [path.name for path in run_dir.iterdir()] == ["run.json"]


def test_a_dry_run_changes_nothing():
    student, teacher = (
        Backbone("test_resnet", timm_kwargs={"in_chans": 1, "num_classes": 10, "drop_rate": 0.5})
        for _ in range(2)
    )
    distiller = Distiller(student, teacher, {"x": Term(Remembers, last=1)})
    distiller.train()
    data = type("Data", (), {"batch_size": 4, "mean": (0.5,), "image_size": 32})

    def state():
        tensors = {**distiller.state_dict(), **{f"t.{k}": v for k, v in teacher.state_dict().items()}}
        drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
        return {k: v.clone() for k, v in tensors.items()}, drawn, [m.training for m in distiller.modules()]

    before = state()
    dry_run(distiller, data, "fit")
    after = state()
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    assert torch.equal(before[1][0], after[1][0])
    assert before[1][1] == after[1][1]
    assert (before[1][2] == after[1][2]).all()
    assert before[2] == after[2]
    assert all(p.grad is None for p in distiller.parameters())
    assert distiller.terms["x"][0].calls == 0


@pytest.mark.parametrize(
    ("strategy", "depth", "is_refused"),
    [
        (DDPStrategy(), 2, True),
        (DDPStrategy(), 1, True),
        (DDPStrategy(find_unused_parameters=True), 2, False),
        (SingleDeviceStrategy(torch.device("cpu")), 2, False),
    ],
)
def test_weights_without_a_gradient_are_told_before_ddp_waits_for_them(strategy, depth, is_refused):
    """A loss of maps alone leaves the head, and the blocks behind them, without a gradient."""
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2})
    teacher = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2})
    spectral = Term(SpectralKD, pairs=[(depth, depth)])
    data = type("Data", (), {"batch_size": 4, "mean": (0.5,), "image_size": 28})
    distiller = Distiller(student, teacher, {"x": spectral, "ce": None}, alpha=0)
    if is_refused:
        wanted = r"model.terms: .+ no gradient .*ddp_find_unused_parameters_true"
        with pytest.raises(UserError, match=wanted):
            dry_run(distiller, data, "fit", strategy)
    else:
        dry_run(distiller, data, "fit", strategy)
    dry_run(Distiller(student, teacher, {"x": spectral}), data, "fit", strategy)  # with ce all have one
    assert all(weight.grad is None for weight in student.parameters())


def test_a_key_given_twice_is_refused_with_file_and_line(experiment, tmp_path, capsys):
    config = experiment()
    plain = config.read_text()
    config.write_text(plain + "trainer:\n  max_epochs: 1\n")
    line = len(config.read_text().splitlines()) - 1
    for args in (
        ["fit", "--config", str(config)],
        ["analyze", "--model", "vit_tiny_patch16_224", "--data", str(config), "--out", str(tmp_path / "o")],
    ):
        error = refused(capsys, *args)
        assert f"{config}:{line}: no valid YAML: the key 'trainer' is given twice" in error
    nested = tmp_path / "student.yaml"
    nested.write_text("name: x\nname: y\n")
    for value, place in ((str(nested), f"{nested}:2"), ("{name: x, name: y}", "--model.student:1")):
        config.write_text(plain)
        error = refused(capsys, "fit", "--config", config, "--model.student", value)
        assert f"error: {place}: no valid YAML: the key 'name' is given twice" in error


def test_merge_keys_and_aliases_are_no_repetition():
    text = "a: &a {x: 1, y: 2}\nb: &b {z: 3}\nc:\n  <<: *a\n  x: 4\nd:\n  <<: *a\n  <<: *b\ne: [*a, *a]\n"
    assert yaml_text.load(text) == yaml.safe_load(text)
    for twice in ("{1: a, 0x1: b}", "{a: {b: 1, 'b': 2}}", "- {a: 1, a: 1}"):
        with pytest.raises(yaml.YAMLError, match="twice"):
            yaml_text.load(twice)


PRINTS = """
import sys, types
package = sys.modules["distill_dynamics"] = types.ModuleType("distill_dynamics")  # without torch
package.__path__ = [sys.argv[1]]
from distill_dynamics.cli.output import output_may_close
with output_may_close():
    for _ in range(100_000):
        print("x" * 100)
print("the end", file=sys.stderr)
"""


def test_output_that_nobody_reads_costs_a_line_and_no_run():
    command = [sys.executable, "-c", PRINTS, str(ROOT / "distill_dynamics")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().splitlines()
    assert process.returncode == 0
    assert said == ["standard output was closed: what is printed there is lost from here on", "the end"]


def test_a_prediction_that_fails_leaves_the_old_file_whole(experiment, tmp_path, capsys, monkeypatch):
    config, old = experiment(trainer__max_epochs=1), tmp_path / "p.csv"
    fit(config, *NAME)
    command = ["predict", "--config", str(tmp_path / "runs" / "r" / "config.yaml"), "--ckpt_path", "best"]
    old.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "predict_step", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*command, "--predictions", str(old)])
    assert old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "runs", "tiny.yaml"]
    refused(capsys, *command, "--predictions", tmp_path / "nowhere" / "p.csv")
    link = tmp_path / "link.csv"
    link.symlink_to(old)
    main([*command, "--predictions", str(link)])
    assert link.is_symlink()
    assert old.read_text().startswith("image,target")
    assert Path(old).stat().st_size > 100
