"""A loss says what it reads by the names of `forward`'s parameters: what it then gets, and what it may do."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import own_losses
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, VIT
from test_fit import assert_same, checkpoint, fit, rows
from torch import nn

from distill_dynamics import Backbone, Distiller, Term, UserError
from distill_dynamics.cli.main import main
from distill_dynamics.losses import CrossEntropy, SoftKD, SpectralKD
from distill_dynamics.schedule import Cosine, From, Linear, Schedule, Steps, Until

pytestmark = pytest.mark.usefixtures("no_report")

TOKENS = {**VIT, "depth": 2}


def deit(name="deit_tiny_patch16_224", **kwargs):
    torch.manual_seed(0)
    return Backbone(name, timm_kwargs={**TOKENS, **kwargs})


def images(n=3):
    return torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def plain(backbone, name, **kwargs):
    model = timm.create_model(name, **{**TOKENS, **kwargs}).eval()
    model.load_state_dict(backbone.model.state_dict())
    return model


def test_nothing_is_computed_that_no_term_reads(monkeypatch):
    """Blocks that ran: up to the deepest that a term reads where no term reads the logits."""
    student, teacher = deit(depth=4), deit(depth=4)
    ran = []
    for i, block in enumerate(teacher.model.blocks):
        block.register_forward_hook(lambda *args, i=i: ran.append(i + 1))
    distiller = Distiller(student, teacher, {"s": Term(SpectralKD, pairs=[(4, 2)])}, alpha=0.0)
    parts = distiller.losses(images(), {"targets": torch.arange(3), "progress": 0.0, "index": None})
    assert set(ran) == {1, 2}  # of one image first: how large its tensors are
    assert ran[-2:] == [1, 2]
    assert parts.keys() == {"ce", "s"}


# --- terms --------------------------------------------------------------------------------------------


def test_alpha_writes_two_terms_and_a_config_may_write_its_own():
    named = lambda distiller: {k: (type(t[0]), t.weight) for k, t in distiller.terms.items()}  # noqa: E731
    student, teacher = deit(), deit()
    assert named(Distiller(student, teacher)) == {
        "ce": (CrossEntropy, pytest.approx(0.1)),
        "kd": (SoftKD, 0.9),
    }
    assert named(Distiller(student)) == {"ce": (CrossEntropy, 1.0)}
    assert named(Distiller(student, teacher, alpha=0.0)) == {"ce": (CrossEntropy, 1.0)}
    replaced = Distiller(student, teacher, {"kd": Term(own_losses.Targets, weight=2.0), "ce": None})
    assert named(replaced) == {"kd": (own_losses.Targets, 2.0)}
    token = Distiller(deit("deit_tiny_distilled_patch16_224"), teacher)
    assert named(token)["kd"] == (
        SoftKD,
        0.9,
    )  # of the mean of both heads
    for setting, name in (({"temperature": 2.0}, "kd"), ({"label_smoothing": 0.0}, "ce")):
        with pytest.raises(UserError, match=f"model.terms.{name} replaces it"):
            Distiller(student, teacher, {name: Term(own_losses.Targets)}, **setting)
    with pytest.raises(UserError, match="no term is left"):
        Distiller(student, terms={"ce": None})


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (Term(own_losses.Unknown, last=1), ["'teacher_maps'", "Did you mean 'teacher_map'", "progress"]),
        (Term(own_losses.Silent), ["reads nothing"]),
        (Term(own_losses.Targets, last=1), ["takes no first, last or pairs"]),
        (Term(own_losses.Maps), ["first, last or pairs"]),
        (Term(own_losses.Maps, weight=Linear(1.0, -1.0), last=1), ["terms.x.weight", "-"]),
        (Term(own_losses.Maps, weight=float("nan"), last=1), ["terms.x.weight"]),
    ],
)
def test_a_term_that_cannot_be_is_one_line(term, words):
    with pytest.raises(UserError) as error:
        Distiller(deit(), deit(), {"x": term})
    line = str(error.value)
    assert "\n" not in line
    assert all(word in line for word in ["model.terms.x" if "terms" not in words[0] else "", *words]), line


def test_a_distiller_answers_without_a_trainer():
    backbone = deit().eval()
    distiller = Distiller(backbone, deit()).eval()
    torch.testing.assert_close(distiller(images()), plain(backbone, "deit_tiny_patch16_224")(images()))


# --- schedules ----------------------------------------------------------------------------------------


def test_schedules_at_their_corners():
    at = np.array([0.0, 0.1, 0.2, 0.35, 0.5, 0.9, 1.0])
    for made, expected in (
        (Linear(1.0, 3.0), 1 + 2 * at),
        (Cosine(2.0, 0.0), 1 + np.cos(np.pi * at)),
        (Steps([1.0, 5.0, 0.0], [0.2, 0.9]), np.array([1, 1, 5, 5, 5, 0, 0.0])),
        (Until(0.2, 0.5, value=4.0), np.array([4, 4, 4, 2, 0, 0, 0.0])),
        (From(0.2, 0.5, value=4.0), np.array([0, 0, 0, 2, 4, 4, 4.0])),
        (Until(0.5, 0.5), np.array([1, 1, 1, 1, 0, 0, 0.0])),
    ):
        np.testing.assert_allclose([made(float(p)) for p in at], expected, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Until(0.5, 0.2),
        lambda: From(-0.1, 0.2),
        lambda: Steps([1.0], [0.5]),
        lambda: Steps([1, 2], [1.5]),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(make):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


class Own(Schedule):
    """A user's."""

    def __call__(self, progress):
        return 1.0 + progress


def test_a_temperature_may_change():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    loss = SoftKD(Linear(1.0, 5.0))
    for progress, t in ((0.0, 1.0), (0.5, 3.0), (1.0, 5.0)):
        expected = (
            F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean") * t**2
        )
        assert loss(student, teacher, progress).item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(UserError, match="above 0"):
        SoftKD(Linear(1.0, 0.0))


# --- a whole run with every word ----------------------------------------------------------------------

DEIT = {**VIT, "depth": 2, "proj_drop_rate": 0.1}


def term(loss, weight=0.1, **where):
    return {"loss": {"class_path": f"own_losses.{loss}"}, "weight": weight, **where}


def everything(**changes):
    """A student with a distillation token, a term for every word, a schedule of each kind."""
    return {
        "model__student": {"name": "deit_tiny_distilled_patch16_224", "timm_kwargs": DEIT},
        "model__teacher": {
            "name": "deit_tiny_patch16_224",
            "timm_kwargs": {**VIT, "embed_dim": 24, "depth": 3},
        },
        "model__temperature": {
            "class_path": "distill_dynamics.schedule.Linear",
            "init_args": {"first": 1.0, "last": 2.0},
        },
        "model__terms": {
            "maps": term("Maps", pairs=[[1, 1], [2, 3]]),
            "prefix": term("Prefix", last=1),
            "attention": term(
                "Attention",
                {"class_path": "distill_dynamics.schedule.Until", "init_args": {"start": 0.2, "end": 0.5}},
                last=1,
            ),
            "targets": term("Targets"),
            "token": term("Token"),
            "bank": term("Bank"),
            "instance": term("Instance"),
            "centred": term("Centred"),
            "halved": term("Half"),
            "basis": term("Basis"),
        },
        "probe__every_n_epochs": 0,
        **changes,
    }


def test_losses_of_ones_own_train_and_resume_to_the_bit(experiment, tmp_path, capsys):
    config = experiment(**everything())
    fit(config, "--name", "whole")
    fit(config, "--name", "parts", "--trainer.max_epochs", "1")
    assert "own_losses" not in capsys.readouterr().err
    runs = tmp_path / "runs"
    # The progress of a training of one epoch is another one, as its end is nearer: begin in the same.
    first = checkpoint(runs / "whole")["state_dict"]
    start = runs / "whole" / "checkpoints" / "best.ckpt"
    assert start.is_file()
    fit(config, "--name", "stopped", "--trainer.callbacks+=test_terms.StopAfterOne")
    fit(runs / "stopped" / "config.yaml", "--ckpt_path", "last", "--trainer.callbacks", "[]")
    again = checkpoint(runs / "stopped")["state_dict"]
    assert all(torch.equal(first[key], again[key]) for key in first)
    last = rows(runs / "whole")[-1]
    assert rows(runs / "stopped")[-1]["train/loss"] == last["train/loss"]
    # 3 steps an epoch, 2 epochs: progress 1/12, 3/12, 5/12; then 7/12, 9/12, 11/12.
    weights = [np.mean([Until(0.2, 0.5)(p / 12) for p in ps]) for ps in ((1, 3, 5), (7, 9, 11))]
    found = [float(row["train/weight_attention"]) for row in rows(runs / "whole")[1:]]
    np.testing.assert_allclose(found, weights, rtol=1e-6)
    assert "train/weight_maps" not in last
    state = checkpoint(runs / "whole")["state_dict"]
    assert state["terms.instance.0.seen"].sum() == 2 * 3 * 16
    assert state["terms.centred.0.images"] > 0
    start = checkpoint(runs / "parts")["state_dict"]["terms.bank.0.queue"]
    assert not torch.equal(start, state["terms.bank.0.queue"])


from lightning.pytorch import Callback  # noqa: E402


class StopAfterOne(Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


def test_what_losses_of_ones_own_read_of_the_teacher_is_cached(experiment, tmp_path, capsys):
    config = experiment(**everything(data__init_args__views=2))
    cache = tmp_path / "cache"
    main(["cache-teacher", "--config", str(config), "--out", str(cache)])
    stored = json.loads((cache / "cache.json").read_text())["layout"]["fields"]
    # Maps, class tokens, attention, logits, pooled features as they are and as `Half` narrows them.
    for field in (
        *("_map_", "_prefix_", "_attention_", "log_probs", "teacher_pooled_24"),
        *("teacher_Half_12", "teacher_Basis_3"),
    ):
        assert any(field in name for name in stored), (field, [*stored])
    fit(config, "--name", "live")
    fit(config, "--name", "cached", "--model.teacher_cache", str(cache))
    live, cached = (rows(tmp_path / "runs" / name) for name in ("live", "cached"))
    for one, other in zip(live[1:], cached[1:], strict=True):
        for name in [name for name in one if name.startswith("train/loss")]:
            assert float(other[name]) == pytest.approx(float(one[name]), rel=0.02, abs=1e-3), name
    # What was fitted came with the cache, to the bit.
    states = [checkpoint(tmp_path / "runs" / name)["state_dict"] for name in ("live", "cached")]
    for fitted in ("terms.centred.0.mean", "terms.basis.0.basis"):
        assert torch.equal(*(state[fitted] for state in states))
    main(["cache-teacher", "--config", str(config), "--out", str(cache), "--verify"])
    assert "are what was written" in capsys.readouterr().out
    (cache / "fitted.safetensors").unlink()
    with pytest.raises(SystemExit):
        fit(config, "--name", "lost", "--model.teacher_cache", str(cache))
    assert "build the cache anew" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("Targets", ["--top_k", "targets", "10"]),
        ("Twice", ["terms.twice", "cacheable", "forward"]),
        ("Shifted", ["terms.shifted", "logits up to a number"]),
    ],
)
def test_a_cache_that_a_loss_cannot_do_with_is_not_built(experiment, tmp_path, capsys, loss, words):
    changes = {
        "model__terms": {loss.lower(): term(loss)},
        "data__init_args__views": 2,
        "model__temperature": 1.0,
    }
    config = experiment(**everything(**changes))
    with pytest.raises(SystemExit):
        main(["cache-teacher", "--config", str(config), "--out", str(tmp_path / "c"), "--top_k", "3"])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words), line
    assert not (tmp_path / "c" / "cache.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "model__teacher__timm_kwargs": {**VIT, "patch_size": 7},
                "model__terms": {"a": term("Attention", last=1)},
            },
            ["model.terms.a", "between 4 patches", "16", "grids"],
        ),
        (
            {
                "model__teacher": {"name": "cait_xxs24_224", "timm_kwargs": {**VIT, "depth": 2}},
                "model__terms": {"p": term("Prefix", last=1)},
            },
            ["model.teacher", "cait_xxs24_224", "no prefix tokens"],
        ),
        (
            {"model__terms": {"a": term("Attention", last=1)}, "model__compile": True},
            ["compile", "attention"],
        ),
    ],
)
def test_what_two_models_do_not_have_is_one_line_before_anything_is_written(
    experiment, tmp_path, capsys, changes, words
):
    with pytest.raises(SystemExit) as stop:
        fit(experiment(**{**everything(), **changes}), "--name", "r")
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words), line
    assert not (tmp_path / "runs" / "r").exists()


def test_the_loss_in_the_readme_trains_as_it_is_written(experiment, tmp_path, monkeypatch):
    blocks = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [text for kind, text in blocks if kind == "python" and "my_losses.py" in text]
    (terms,) = [text for kind, text in blocks if kind == "yaml" and "my_losses" in text]
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as an installed script has it
    terms = yaml.safe_load(terms)["terms"]
    fit(experiment(model__terms=terms, probe__every_n_epochs=0), "--name", "r")
    losses = [float(row["train/loss_gram"]) for row in rows(tmp_path / "runs" / "r")[1:]]
    assert len(losses) == 2
    assert all(0 < loss < 2 for loss in losses)


@pytest.mark.slow
def test_losses_of_ones_own_train_on_two_ranks(experiment, tmp_path):
    config = experiment(**everything())
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/tests/train", "OMP_NUM_THREADS": "1"}
    for name in ("two", "again"):
        command = [sys.executable, "-m", "distill_dynamics", "fit", "--config", config, "--name", name]
        options = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        done = subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    one, other = (checkpoint(tmp_path / "runs" / name) for name in ("two", "again"))
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_same(one[key], other[key])
    state = one["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def parameters(loss: nn.Module) -> set[str]:
    return {name for name, _ in loss.named_parameters()}
