"""What losses are fitted to, against timm's own model on the images as they lie in the data set."""

import numpy as np
import pytest
import timm
import torch
from conftest import VIT
from lightning.pytorch import Trainer

from distill_dynamics import Backbone, Distiller, Term, UserError
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.losses import ClassTokenKD, FitNet, PCATarget, PooledKD, TokenKD
from distill_dynamics.train import reference_images
from distill_dynamics.train.gates import CapacityGate

TEACHER = {**VIT, "embed_dim": 24, "depth": 2}


def test_losses_are_fitted_to_training_images_as_evaluation_prepares_them(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_images, "IMAGES", 50)
    torch.manual_seed(0)
    teacher = Backbone("deit_tiny_patch16_224", timm_kwargs=TEACHER)
    teacher.set_normalisation((0.5,), (0.25,))
    plain = timm.create_model("deit_tiny_patch16_224", **TEACHER).eval()
    plain.load_state_dict(teacher.model.state_dict())
    # Training images are erased as a whole, which must not be seen.
    data = FashionMNISTSample(batch_size=32, eval_batch_size=20, augment={"re_prob": 1.0, "hflip": 1.0})
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1})
    distiller = Distiller(student, teacher, {"pca": Term(PCATarget, last=1)}, alpha=0.0)
    Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    ).fit(distiller, datamodule=data)

    drawn = data.probe_set(50, split="train").indices
    targets = data.sources["train"].targets[drawn]
    assert (np.bincount(targets) == 5).all()
    pixels = torch.stack([torch.from_numpy(np.array(data.sources["train"].image(int(i)))) for i in drawn])
    images = ((pixels / 255.0 - 0.5) / 0.25).reshape(50, 1, 28, 28)
    with torch.no_grad():
        tokens = plain.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[0]
    tokens = tokens.movedim(1, -1).reshape(-1, 24).double().numpy()
    vectors = np.linalg.eigh(np.cov(tokens.T)).eigenvectors
    loss = distiller.terms["pca"][0]
    np.testing.assert_allclose(loss.mean, tokens.mean(0), atol=1e-5)
    same = np.abs((loss.basis.numpy() * vectors[:, ::-1][:, : loss.kept]).sum(0))
    np.testing.assert_allclose(same, 1, atol=1e-3)


def test_tokens_are_standardised_on_the_students_grid_and_pooled_features_of_every_image(
    tmp_path, monkeypatch
):
    """A teacher of 4 x 4 patches without a head, a student of 2 x 2."""
    monkeypatch.setattr(reference_images, "IMAGES", 40)
    torch.manual_seed(0)
    kwargs = {**TEACHER, "patch_size": 7, "num_classes": 0}
    teacher = Backbone("vit_small_patch14_dinov2", timm_kwargs=kwargs)
    teacher.set_normalisation((0.5,), (0.25,))
    data = FashionMNISTSample(batch_size=32, eval_batch_size=15)
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2})
    terms = {"map": Term(TokenKD, last=1), "class": Term(ClassTokenKD, last=1), "pooled": Term(PooledKD)}
    distiller = Distiller(student, teacher, terms, alpha=0.0)
    Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    ).fit(distiller, datamodule=data)

    drawn = data.probe_set(40, split="train").indices
    pixels = torch.stack([torch.from_numpy(np.array(data.sources["train"].image(int(i)))) for i in drawn])
    images = ((pixels / 255.0 - 0.5) / 0.25).reshape(40, 1, 28, 28)
    with torch.no_grad():
        final, blocks = teacher.model.forward_intermediates(
            images, indices=1, norm=False, return_prefix_tokens=True
        )
    tokens, prefix = blocks[0]
    pooled = tokens.reshape(40, 24, 2, 2, 2, 2).mean((3, 5)).movedim(1, -1).reshape(-1, 24)
    for name, expected in {"map": pooled, "class": prefix[:, 0], "pooled": final[:, 0]}.items():
        loss, x = distiller.terms[name][0], expected.double().numpy()
        np.testing.assert_allclose(loss.mean, x.mean(0), atol=1e-5)
        least = np.sqrt(1e-4 * x.var(0).mean())
        np.testing.assert_allclose(loss.std, np.maximum(x.std(0), least), rtol=1e-4)


class Unfit(PCATarget):
    def fit(self, batches):
        raise ValueError("no basis for this teacher")


def test_what_a_fit_raises_names_its_term(tmp_path):
    teacher, student = (Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1}) for _ in range(2))
    distiller = Distiller(student, teacher, {"pca": Term(Unfit, last=1)}, alpha=0.0)
    runner = Trainer(accelerator="cpu", max_steps=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(UserError, match=r"model\.terms\.pca\.loss: no basis for this teacher"):
        runner.fit(distiller, datamodule=FashionMNISTSample(batch_size=32))


def test_a_basis_a_gate_and_a_floor_read_the_images_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_images, "IMAGES", 50)
    teacher = Backbone("deit_tiny_patch16_224", timm_kwargs=TEACHER)
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2})
    terms = {"pca": Term(PCATarget, first=1, last=1, gate=CapacityGate()), "fitnet": Term(FitNet, last=1)}
    data = FashionMNISTSample(batch_size=32)
    asked = []
    probe_set = data.probe_set
    data.probe_set = lambda *args, **kwargs: asked.append(kwargs) or probe_set(*args, **kwargs)
    distiller = Distiller(student, teacher, terms, alpha=0.0)
    Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    ).fit(distiller, datamodule=data)
    assert distiller.loss_floors.keys() == {"pca", "fitnet"}
    assert len(asked) == 1
