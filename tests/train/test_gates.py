"""Gates: what they are of a teacher, and that a gated term is what several terms of other weights are."""

import json
import subprocess

import lightning.pytorch as pl
import numpy as np
import own_gates
import pytest
import timm
import torch
import yaml
from conftest import VIT, fit_once, program, refused, tiny_config
from profiles import profile_of
from test_fit import assert_same, checkpoint, fit, rows
from test_terms import StopAfterOne, deit  # noqa: F401 (named in a config)

from distill_dynamics import Backbone, Distiller, Term, UserError
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.dynamics.signature import signature
from distill_dynamics.losses import FitNet, SoftKD, SpectralKD
from distill_dynamics.train import reference_images
from distill_dynamics.train.gates import CapacityGate, PhaseGate

pytestmark = pytest.mark.usefixtures("no_report")

# --- what they are ------------------------------------------------------------------------------------


def profile(entropy, noise=0.0, **fields):
    """Of 64 images whose entropies are a curve and noise."""
    depth = len(entropy)
    draws = np.random.default_rng(0).normal(0, noise, (64, depth))
    return profile_of(
        model="t",
        epoch=None,
        layers=[f"blocks.{i}" for i in range(depth)],
        entropy_images=np.asarray(entropy) + draws,
        magnitude_images=np.ones((64, depth)),
        spectrum=[np.empty(0)] * depth,
        spectrum_se=[np.empty(0)] * depth,
        value_range=np.zeros((depth, 2)),
        range_mode="global",
        clipped=np.zeros(depth),
        bins=100,
        **fields,
    )


def floored(floor, width=32):
    made = profile([1.0] * len(floor))
    made.curves["capacity_floor"], made.student_width = np.asarray(floor), width
    return made


U = [3.0, 2.5, 2.0, 1.0, 1.5, 2.5, 3.0, 3.5]


def test_a_phase_gate_is_a_logistic_curve_that_is_a_half_at_the_lowest_block():
    gates = PhaseGate()(profile(U), [(1, 1), (2, 4), (3, 6), (4, 8)])
    np.testing.assert_allclose(gates, [1 / (1 + np.exp(b - 4)) for b in (1, 4, 6, 8)], rtol=1e-12)


def test_a_phase_gate_is_as_wide_as_the_lowest_block_is_uncertain():
    flat = [3.0, 2.0, 1.02, 1.0, 1.0, 1.0, 1.01, 1.02, 2.0, 3.0]
    made = profile(flat, noise=0.1)
    shape = signature(made)
    assert shape.u_shaped
    assert shape.nadir_se > 1.05
    gates = PhaseGate()(made, [(1, 2), (2, 9)])
    logits = [(shape.nadir - b) / shape.nadir_se for b in (2, 9)]
    np.testing.assert_allclose(np.log(gates / (1 - gates)), logits, rtol=1e-9)


@pytest.mark.parametrize("entropy", [[3.0, 2.0, 1.0], [2.0, 2.0, 2.0], [2.0, 1.98, 2.0]])
def test_without_a_u_a_phase_gate_is_1_and_says_so(entropy):
    with pytest.warns(UserWarning, match="no U on 64 training images .*the gate is 1 for every pair"):
        assert (PhaseGate()(profile(entropy), [(1, 1), (2, 3)]) == 1).all()


def test_a_capacity_gate_is_what_is_left_of_the_highest_floor():
    gates = CapacityGate()(floored([0.01, 0.05, 0.2, 0.1]), [(1, 1), (2, 3), (3, 4)])
    np.testing.assert_allclose(gates, [0.95, 0, 0.5], rtol=1e-12)


def test_a_capacity_gate_is_1_and_says_so_where_the_student_holds_every_block():
    with pytest.warns(UserWarning, match="32 channels can hold every block .*at most 0.0009"):
        assert (CapacityGate()(floored([0.0009, 0.0]), [(1, 1), (2, 2)]) == 1).all()


@pytest.mark.parametrize(
    ("made", "words"),
    [(floored([0.1, np.nan]), "not known at block 2"), (floored([0.1, 0.2], None), "a term of each")],
)
def test_a_capacity_gate_without_a_floor_is_one_line(made, words):
    with pytest.raises(UserError, match=words):
        CapacityGate()(made, [(1, 1)])


# --- what they do -------------------------------------------------------------------------------------

WEIGHT = 0.4
NUMBERS = [1.0, 0.5, 0.0, 0.25]


@pytest.fixture
def few_images(monkeypatch):
    """Training images that a gate is made of."""
    monkeypatch.setattr(reference_images, "IMAGES", 48)


class Steps(pl.Callback):
    """The total and every term, step by step."""

    def __init__(self):
        self.names, self.values = [], []

    def on_before_backward(self, trainer, module, loss):
        self.names = module.latest.names
        self.values.append(module.latest.values.clone())


def trained(terms, teacher=None, steps=6, **settings):
    """A training of tiny models: its steps, and its module."""
    pl.seed_everything(3, verbose=False)
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 4})
    cait = {**VIT, "embed_dim": 24, "depth": 6}
    teacher = teacher or Backbone("cait_xxs24_224", timm_kwargs=cait)
    module = Distiller(student, teacher, terms, **settings)
    seen = Steps()
    off = dict.fromkeys(["logger", "enable_checkpointing", "enable_model_summary"], False)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=steps // 2, limit_val_batches=0,
        num_sanity_val_steps=0, callbacks=[seen], enable_progress_bar=False, **off,
    )  # fmt: skip
    trainer.fit(module, datamodule=FashionMNISTSample(batch_size=16, eval_batch_size=100))
    return seen, module


def test_a_gated_term_is_several_terms_of_constant_weights_step_for_step(few_images):
    gated, ours = trained({"x": Term(SpectralKD, WEIGHT, pairs="depth", gate=own_gates.Numbers(NUMBERS))})
    assert ours.terms["x"].pairs == [(1, 2), (2, 3), (3, 5), (4, 6)]
    by_hand = {
        f"x{i}": Term(SpectralKD, WEIGHT * gate / 4, pairs=[pair])
        for i, (gate, pair) in enumerate(zip(NUMBERS, [(1, 2), (2, 3), (3, 5), (4, 6)], strict=True))
    }
    plain, theirs = trained(by_hand)
    for step, other in zip(gated.values, plain.values, strict=True):
        torch.testing.assert_close(step[0], other[0], rtol=1e-6, atol=0)  # the total
        torch.testing.assert_close(step[3], other[3:].mean(), rtol=1e-6, atol=0)  # logged: without gates
    for (name, weight), other in zip(
        ours.student.named_parameters(), theirs.student.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-6, msg=name)
    plain, _ = trained({"x": Term(SpectralKD, WEIGHT, pairs="depth")})
    assert not torch.equal(plain.values[-1], gated.values[-1])


def test_a_gate_is_given_the_teacher_on_training_images_as_evaluation_prepares_them(few_images):
    own_gates.KEPT.clear()
    _, module = trained(
        {
            "a": Term(SpectralKD, pairs=[(2, 3), (4, -1)], gate=own_gates.Magnitudes()),
            "b": Term(FitNet, last=1, gate=own_gates.Magnitudes()),
        }
    )
    (given, pairs), (again, _) = own_gates.KEPT
    assert again is given  # one Profile serves both
    assert pairs == [(2, 3), (4, 6)]
    data = FashionMNISTSample()
    data.setup("fit")
    drawn = data.probe_set(48, 0, split="train")
    teacher = module.teacher.backbone
    model = timm.create_model("cait_xxs24_224", **{**VIT, "embed_dim": 24, "depth": 6}).eval()
    model.load_state_dict(teacher.model.state_dict())
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (teacher.mean, teacher.std))
    with torch.no_grad():
        maps = model.forward_intermediates(
            (drawn.pixels / 255 - mean) / std, norm=False, intermediates_only=True
        )
    magnitudes = np.array([x.abs().mean() for x in maps])
    np.testing.assert_allclose(given.magnitude, magnitudes, rtol=1e-4)
    assert given.student_width == 16
    assert given.curves["capacity_floor"].shape == (6,)
    expected = [magnitudes[i] / magnitudes.max() for i in (2, 5)]
    np.testing.assert_allclose(module.terms["a"].gates, expected, rtol=1e-4)
    assert module.state_dict()["terms.a.gates"].shape == (2,)


def test_the_shipped_teacher_has_a_u_and_a_phase_gate_falls_with_depth(few_images):
    """Rank by rank: below a half after the lowest block, above it before."""
    teacher = Backbone("cait_xxs24_224", checkpoint="packaged:cait_fashion_mnist")
    _, module = trained({"x": Term(SpectralKD, pairs="depth", gate=PhaseGate())}, teacher, steps=2)
    gates = module.terms["x"].gates
    assert (gates.diff() < 0).all()
    assert gates[0] > 0.5 > gates[-1]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (own_gates.Numbers([1.0, 1.0]), r"Numbers gives an array of shape \[2\], .* 4 pairs"),
        (own_gates.Numbers([1.0, -1.0, 1, 1]), "Numbers gives -1 for the pair 2-3: .* 0 or more"),
        (own_gates.Numbers([1.0, 1, 1, float("nan")]), "gives nan for the pair 4-6"),
        (own_gates.Numbers([0.0] * 4), "gives 0 for every pair .*pairs: depth"),
        (own_gates.Fails(), "model.terms.x.gate: 'no such curve'"),
    ],
)
def test_a_gate_that_gives_none_is_one_line(few_images, gate, words):
    with pytest.raises(UserError, match=words) as error:
        trained({"x": Term(SpectralKD, pairs="depth", gate=gate)})
    assert "\n" not in str(error.value)


def test_a_gate_where_there_is_nothing_to_gate_is_one_line():
    student, teacher = deit(), deit()
    with pytest.raises(UserError, match=r"model.terms.x: .*nothing of blocks, so it takes no gate"):
        Distiller(student, teacher, {"x": Term(SoftKD, gate=PhaseGate())})
    with pytest.raises(UserError, match="value_range is global, layer or scaled, not 'all'"):
        PhaseGate("all")


# --- whole runs ---------------------------------------------------------------------------------------

UNTIL = {"start": 0.2, "end": 0.9}
GATED = {
    "model__teacher": {"name": "deit_tiny_patch16_224", "timm_kwargs": {**VIT, "embed_dim": 24, "depth": 3}},
    "model__terms": {
        "maps": {
            "loss": {"class_path": "distill_dynamics.losses.FitNet"},
            "weight": {"class_path": "distill_dynamics.schedule.Until", "init_args": UNTIL},
            "pairs": "depth",
            "gate": {"class_path": "own_gates.Magnitudes"},
            "budget": 0.3,
        }
    },
    "probe__every_n_epochs": 0,
    "data__init_args__views": 2,
}
GATES = "terms.maps.gates"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit_once(tmp_path_factory.mktemp("gates"), "whole", **GATED)


def config_of(folder, **changes):
    path = folder / "again.yaml"
    path.write_text(yaml.safe_dump({**tiny_config(**GATED | changes), "runs_dir": str(folder)}))
    return path


def gates_of(run):
    return checkpoint(run)["state_dict"][GATES]


def test_a_continued_run_has_the_gates_and_the_end_of_one_that_was_not_stopped(whole, tmp_path):
    config = config_of(tmp_path)
    fit(config, "--name", "r", "--trainer.callbacks+=test_terms.StopAfterOne")
    fit(tmp_path / "r" / "config.yaml", "--ckpt_path", "last", "--trainer.callbacks", "[]")
    for key in ("state_dict", "optimizer_states"):
        assert_same(checkpoint(whole)[key], checkpoint(tmp_path / "r")[key])
    assert rows(whole)[-1]["train/weight_maps"] == rows(tmp_path / "r")[-1]["train/weight_maps"]
    recorded = [start["gates"] for start in json.loads((tmp_path / "r" / "run.json").read_text())["starts"]]
    assert recorded[0] == recorded[1]
    assert recorded[0]["maps"] == [[1, 2, gates_of(whole)[0].item()], [2, 3, gates_of(whole)[1].item()]]


def test_a_cache_gives_the_gates_of_the_live_teacher(whole, tmp_path):
    config, cache = config_of(tmp_path), tmp_path / "cache"
    main(["cache-teacher", "--config", str(config), "--out", str(cache)])
    fit(config, "--name", "r", "--model.teacher_cache", str(cache))
    assert torch.equal(gates_of(whole), gates_of(tmp_path / "r"))
    assert gates_of(whole)[0] != gates_of(whole)[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate": None}, "terms.maps.gate was Magnitudes (calls: []) at 1-2, 2-3 and is null"),
        ({"gate": {"class_path": "distill_dynamics.train.gates.PhaseGate"}}, "and is PhaseGate (value_range"),
        ({"pairs": [[1, 1], [2, 3]]}, "Magnitudes (calls: []) at 1-1, 2-3"),
    ],
)
def test_a_continued_run_with_another_gate_is_one_line(whole, tmp_path, capsys, changes, words):
    term = {"model__terms": {"maps": {**GATED["model__terms"]["maps"], **changes}}}
    line = refused(
        capsys, "fit", "--config", config_of(tmp_path, **term), "--ckpt_path",
        whole / "checkpoints" / "last.ckpt", "--trainer.max_epochs", "3",
    )  # fmt: skip
    assert words in line.strip().splitlines()[-1]


@pytest.mark.slow
def test_two_ranks_have_the_gates_of_one(whole, tmp_path):
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--name", "two"]
    command = program("fit", "--config", config_of(tmp_path), *options)
    command["env"]["PYTHONPATH"] += ":tests/train"
    done = subprocess.run(**command, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert torch.equal(gates_of(whole), gates_of(tmp_path / "two"))
    means = [float(row["train/weight_maps"]) for row in rows(tmp_path / "two")[1:]]
    assert np.mean(means) == pytest.approx(0.3, rel=1e-9)
