"""What a loss cannot go below: against the best linear map that lstsq finds, and as a run records it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from conftest import VIT
from lightning.pytorch import Trainer

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.losses import FitNet, PCATarget, ProjectorKD, SpectralKD
from distill_dynamics.losses.fitnet import fitnet
from distill_dynamics.losses.projector import projector_kd
from distill_dynamics.report.records import Run
from distill_dynamics.report.tables import loss_rows
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.train import reference_images

GENERATOR = np.random.default_rng(0)
TOKENS = GENERATOR.standard_normal((64 * 9, 8)) @ GENERATOR.standard_normal((8, 8)) + 2
COVARIANCE = torch.from_numpy(np.cov(TOKENS.T, bias=True))


def as_map(tokens):
    return torch.from_numpy(tokens).reshape(64, 3, 3, -1).movedim(-1, 1)


def best_students(standardise):
    """Three channels: the principal components of the tokens, and others that are not."""
    x = (TOKENS - TOKENS.mean(0)) / (TOKENS.std(0) if standardise else 1)
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    return x, left[:, :3] * values[:3], np.random.default_rng(1).standard_normal((len(x), 3))


def fitted_by_lstsq(student, target):
    weight, *_ = np.linalg.lstsq(np.c_[student, np.ones(len(student))], target, rcond=None)
    return torch.from_numpy(weight[:-1].T.copy()), torch.from_numpy(weight[-1])


def test_fitnets_is_the_loss_of_the_best_map_of_the_principal_components():
    _, best, other = best_students(False)
    floor = float(FitNet(3, 8).floor(COVARIANCE, 3))
    losses = [fitnet(as_map(s), as_map(TOKENS), *fitted_by_lstsq(s, TOKENS)).item() for s in (best, other)]
    assert losses[0] == pytest.approx(floor, rel=1e-6)
    assert losses[1] > floor
    assert FitNet(3, 8, hinge=True).floor(COVARIANCE, 3) == 0  # it is taken off


def test_projectorkds_is_the_correlation_floor_and_its_best_map_is_above_by_a_known_amount():
    x, best, other = best_students(True)
    floor = float(ProjectorKD(3, 8).floor(COVARIANCE, 3))
    assert floor == pytest.approx(np.linalg.eigvalsh(np.corrcoef(TOKENS.T))[:5].sum() / 8, rel=1e-4)
    weight, bias = fitted_by_lstsq(best, x)
    unexplained = ((x - best @ weight.numpy().T) ** 2).mean(0)
    assert unexplained.mean() == pytest.approx(floor, rel=1e-4)
    loss = projector_kd(as_map(best), as_map(TOKENS), weight, bias).item()
    assert loss == pytest.approx((2 - 2 * np.sqrt(1 - unexplained)).mean(), rel=1e-3)
    assert floor < loss
    assert projector_kd(as_map(other), as_map(TOKENS), *fitted_by_lstsq(other, x)).item() > floor
    # Where standardising's epsilon counts, the floor itself is reached: each channel small enough to stay so.
    size = np.sqrt(1e-5 * (1 - unexplained) / unexplained) / np.sqrt(1 - unexplained)
    small = torch.from_numpy(size)[:, None] * weight
    assert projector_kd(as_map(best), as_map(TOKENS), small, None).item() == pytest.approx(floor, rel=1e-4)


def test_descent_from_a_random_start_stays_above_projectorkds():
    torch.manual_seed(0)
    student = torch.randn(64, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    loss = ProjectorKD(3, 8).double()
    floor = float(loss.floor(COVARIANCE, 3))
    optimiser = torch.optim.Adam([student, *loss.parameters()], lr=0.05)
    for _ in range(500):
        optimiser.zero_grad()
        value = loss(student, as_map(TOKENS))
        value.backward()
        optimiser.step()
    assert floor < value.item() < 1.3 * floor + 0.02


def test_a_projector_that_is_not_trained_has_none():
    assert ProjectorKD(3, 8, trainable=False).floor(COVARIANCE, 3) is None


@pytest.mark.parametrize(
    ("rank", "settings"),
    [
        (3, {}),
        (5, {}),
        (5, {"whiten": True}),
        (5, {"components": "random"}),
        (5, {"components": "random", "whiten": True}),
    ],
)
def test_pca_targets_is_what_is_asked_for_beyond_the_students_channels(rank, settings):
    loss = PCATarget(3, 8, rank=rank, **settings).double()
    loss.fit([{"teacher_map": as_map(TOKENS)}])
    target = loss.cacheable(as_map(TOKENS[:, :3]), as_map(TOKENS)).movedim(1, -1).reshape(len(TOKENS), -1)
    left, values, _ = np.linalg.svd(target.numpy(), full_matrices=False)
    best = left[:, :3] * values[:3]
    weight, bias = fitted_by_lstsq(best, target.numpy())
    with torch.no_grad():
        loss.projector.weight.copy_(weight[:, :, None, None])
        loss.projector.bias.copy_(bias)
    floor = float(loss.floor(COVARIANCE, 3)) if callable(loss.floor) else loss.floor
    assert loss(as_map(best), as_map(TOKENS), 0.5).item() == pytest.approx(floor, rel=1e-4, abs=1e-9)
    assert (floor > 0) == (rank > 3)


def test_the_floor_of_a_hinge_has_its_first_name_in_checkpoints():
    loss = FitNet(3, 8, hinge=True)
    state = loss.state_dict()
    assert {*state} == {"projector.weight", "projector.bias", "floor"}  # a checkpoint's names are compared
    loss.load_state_dict({**state, "floor": torch.tensor(0.25)})
    assert loss.fitted_floor.item() == loss.state_dict()["floor"].item() == 0.25


def test_a_run_records_its_terms_floors_of_the_teachers_tokens(tmp_path, monkeypatch):
    """On the grid that the loss sees: the teacher's 4 x 4 tokens, pooled to the student's 2 x 2."""
    monkeypatch.setattr(reference_images, "IMAGES", 50)
    torch.manual_seed(0)
    fine = {**VIT, "embed_dim": 24, "depth": 2, "patch_size": 7}
    teacher = Backbone("deit_tiny_patch16_224", timm_kwargs=fine)
    plain = timm.create_model("deit_tiny_patch16_224", **fine).eval()
    plain.load_state_dict(teacher.model.state_dict())
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2, "patch_size": 14})
    channels = student.channels[-1]
    terms = {
        "fitnet": Term(FitNet, first=1, last=1),
        "spectral": Term(SpectralKD, last=1),
        "frozen": Term(lambda *widths: ProjectorKD(*widths, trainable=False), last=1),
    }
    data = FashionMNISTSample(batch_size=32, eval_batch_size=20)
    distiller = Distiller(student, teacher, terms, alpha=0.0)
    Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    ).fit(distiller, datamodule=data)
    drawn = data.probe_set(50, split="train")
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (teacher.mean, teacher.std))
    with torch.no_grad():
        maps = plain.forward_intermediates(
            (drawn.pixels / 255.0 - mean) / std, norm=False, intermediates_only=True
        )
    expected = []
    for x in maps:
        tokens = torch.nn.functional.avg_pool2d(x, 2).movedim(1, -1).reshape(-1, 24).double().numpy()
        expected.append(np.linalg.eigvalsh(np.cov(tokens.T, bias=True))[: 24 - channels].sum() / 24)
    assert distiller.loss_floors == {"fitnet": pytest.approx(np.mean(expected), rel=1e-4), "spectral": 0.0}


def test_the_table_has_each_floor_beside_the_last_loss():
    metrics = [{"epoch": 1, "train/loss_a": 0.5}, {"epoch": 2, "train/loss_a": 0.25}]
    floors = json.loads('{"a": 0.125, "b": 0.0, "c": "x", "d": NaN, "e": -1.0}')
    starts = [{"floors": floors}, {"from_epoch": 1}]
    run = Run("r", "r", SimpleNamespace(), "fit", RunProfiles([], None, None), metrics, starts=starts)
    rows = loss_rows([run])
    assert rows[1:] == [("a", "0.25", "0.125"), ("b", "–", "0")]
    assert loss_rows([Run("r", "r", SimpleNamespace(), "fit", RunProfiles([], None, None), metrics)]) == []
