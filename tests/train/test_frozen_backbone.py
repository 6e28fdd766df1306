"""A student of which the head alone is trained, beside scipy, a run without a stop, and one rank."""

import subprocess

import lightning.pytorch as pl
import numpy as np
import pytest
import scipy.optimize
import timm
import torch
import yaml
from conftest import VIT, fit_once, program, refused, tiny_config
from test_fit import assert_same, checkpoint, fit

from distill_dynamics import Backbone, Distiller, Term, UserError
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.losses import FitNet, PooledKD

DEIT = "deit_tiny_patch16_224"
HEADLESS = {**VIT, "depth": 2, "num_classes": 0}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A student/ folder without a head."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("pretrained")
    Backbone(DEIT, timm_kwargs=HEADLESS).export_folder(folder)
    return folder


def student(folder, **timm_kwargs):
    return Backbone(checkpoint=folder, timm_kwargs={"num_classes": 10, **timm_kwargs})


def trained(distiller, folder, data=None, **trainer):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    quiet |= {"enable_model_summary": False, "default_root_dir": folder, "limit_val_batches": 0}
    pl.seed_everything(0, verbose=False)
    runner = pl.Trainer(accelerator="cpu", **{"max_epochs": 1, "limit_train_batches": 3, **quiet, **trainer})
    runner.fit(distiller, datamodule=data or FashionMNISTSample(batch_size=16))
    return distiller


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [DEIT, "test_resnet", "test_efficientnet", "vit_base_patch16_siglip_224"])
def test_all_but_the_head_stays_what_it_was_bit_by_bit(tmp_path, name):
    """Dropout, drop path, batch norm's averages and all."""
    kwargs = {**HEADLESS, "drop_path_rate": 0.2} if "patch" in name else {"num_classes": 0, "in_chans": 1}
    Backbone(name, timm_kwargs=kwargs).export_folder(tmp_path / "student")
    one = student(tmp_path / "student", drop_rate=0.5)
    before = state(one)
    modes = []
    one.model.get_classifier().register_forward_hook(lambda *args: modes.append(one.training))
    head = {f"model.{n}.{kind}" for n in (timm_head(one),) for kind in ("weight", "bias")}
    distiller = trained(Distiller(one, freeze_backbone=True), tmp_path)
    assert modes
    assert not any(modes)
    changed = {key for key, value in state(one).items() if not torch.equal(value, before[key])}
    assert changed == head
    given = [p for group in distiller.trainer.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in one.model.get_classifier().parameters()}
    weight, bias = distiller.trainer.optimizers[0].param_groups
    assert weight["weight_decay"] > 0
    assert bias["weight_decay"] == 0


def timm_head(one):
    return one.model.pretrained_cfg["classifier"]


def test_nothing_before_the_head_is_kept_for_gradients(pretrained):
    one = student(pretrained)
    distiller = Distiller(one, freeze_backbone=True)
    parts = distiller.losses(torch.randn(3, 1, 28, 28), {"targets": torch.arange(3), "progress": 0.0})
    seen, nodes = set(), [parts["ce"].mean.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
    leaves = {id(node.variable) for node in seen if hasattr(node, "variable")}
    assert leaves == {id(p) for p in one.model.get_classifier().parameters()}
    assert len(seen) < 20


def test_its_end_is_that_of_a_logistic_regression_on_its_features(pretrained, tmp_path):
    """Cross-entropy and λ / 2 · |W|², none on the bias, minimised by scipy on what plain timm gives."""
    decay, count = 0.1, 64
    data = FashionMNISTSample(batch_size=count, augment={"hflip": 0.0})
    data.setup("fit")
    sgd = {"lr": 0.3, "momentum": 0.9, "weight_decay": decay}
    distiller = Distiller(
        student(pretrained),
        label_smoothing=0.0,
        optimizer=lambda params: torch.optim.SGD(params, **sgd),
        scheduler=None,
        freeze_backbone=True,
    )
    # The same images in every step: those of the first batch.
    data.train_dataloader()
    first = next(iter(data.train_dataloader()))
    data.train_dataloader = lambda: torch.utils.data.DataLoader([None] * 400, collate_fn=lambda _: first)
    trained(distiller, tmp_path, data, limit_train_batches=400)
    head = distiller.student.model.get_classifier()

    plain = timm.create_model(f"local-dir:{pretrained}", pretrained=True).eval()
    images, targets = first[:2]
    with torch.no_grad():
        x = plain(distiller.renormalise(images)).double().numpy()
    y = np.eye(10)[targets.numpy()]

    def loss(flat):
        w, b = flat[:-10].reshape(10, -1), flat[-10:]
        z = x @ w.T + b
        log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        d = (np.exp(log_p) - y) / len(x)
        value = -(y * log_p).sum() / len(x) + decay / 2 * (w**2).sum()
        return value, np.concatenate([(d.T @ x + decay * w).ravel(), d.sum(0)])

    start = np.zeros(10 * x.shape[1] + 10)
    best = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    ours = torch.cat([head.weight.flatten(), head.bias]).detach().double().numpy()
    assert loss(ours)[0] == pytest.approx(best.fun, rel=1e-4)
    # An equal number added to every bias changes nothing.
    np.testing.assert_allclose(ours[:-10], best.x[:-10], atol=2e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: Backbone(checkpoint=f), "has no head"),
        (lambda f: Backbone(DEIT, timm_kwargs=VIT), "has no weights"),
    ],
)
def test_what_has_no_head_or_no_weights_is_refused(pretrained, make, words):
    with pytest.raises(UserError, match=rf"model\.freeze_backbone: model\.student: .* {words}"):
        Distiller(make(pretrained), terms={"x": Term(Logits)}, freeze_backbone=True)


class Logits(torch.nn.Module):
    def forward(self, student_logits):
        return student_logits.sum()


@pytest.mark.parametrize(("loss", "where", "word"), [(FitNet, {"last": 1}, "map"), (PooledKD, {}, "pooled")])
def test_a_term_that_reads_features_is_refused(pretrained, loss, where, word):
    teacher = Backbone(DEIT, timm_kwargs={**VIT, "depth": 2})
    with pytest.raises(UserError, match=rf"term x reads the student's {word}, which is not trained"):
        Distiller(student(pretrained), teacher, {"x": Term(loss, **where)}, freeze_backbone=True)


def test_two_heads_are_refused(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    Backbone(name, timm_kwargs={**VIT, "depth": 1}).export_folder(tmp_path)
    with pytest.raises(UserError, match="two heads"):
        Distiller(Backbone(checkpoint=tmp_path), freeze_backbone=True)


# --- the command --------------------------------------------------------------------------------------


def changes(folder, **more):
    return {
        "model__student": {"checkpoint": str(folder)},
        "model__teacher": None,
        "model__terms": None,
        "model__freeze_backbone": True,
        **more,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pretrained):
    ema = [{"class_path": "distill_dynamics.callbacks.EMA", "init_args": {"decay": 0.5}}]
    return fit_once(tmp_path_factory.mktemp("runs"), **changes(pretrained, trainer__callbacks=ema))


@pytest.mark.usefixtures("no_report", "blank_pictures")
def test_a_run_that_goes_on_ends_as_one_without_a_stop(whole, pretrained, tmp_path):
    before, config = checkpoint(whole)["state_dict"], whole.parent / "tiny.yaml"
    there = ("--runs_dir", str(tmp_path), "--name", "r")
    fit(config, *there, "--trainer.max_epochs", "1")
    fit(config, *there, "--ckpt_path", "last")
    after = checkpoint(tmp_path / "r")["state_dict"]
    assert_same(before, after)
    weights = Backbone(checkpoint=pretrained).state_dict()
    for key, value in weights.items():
        assert torch.equal(value, after[f"student.{key}"]), key
    average = checkpoint(whole)["callbacks"]["EMA"]
    assert all(torch.equal(value, average[f"module.{key}"]) for key, value in weights.items())
    exported = timm.create_model(f"local-dir:{whole / 'student'}", pretrained=True)
    best = checkpoint(whole, "best")["state_dict"]
    assert torch.equal(exported.head.weight, best["student.model.head.weight"])


def test_a_run_does_not_go_on_with_another_part_trained(whole, capsys):
    config = whole / "config.yaml"
    line = refused(
        capsys, "fit", "--config", config, "--ckpt_path", "last", "--model.freeze_backbone", "false"
    )
    assert "model.freeze_backbone was true" in line


@pytest.mark.slow
def test_two_ranks_train_the_head_that_one_does(pretrained, tmp_path):
    ends = []
    for devices in (1, 2):
        more = {"trainer__devices": devices, "data__init_args__batch_size": 16 // devices}
        config = tiny_config(**changes(pretrained, probe__every_n_epochs=0, **more))
        path = tmp_path / f"on_{devices}.yaml"
        path.write_text(yaml.safe_dump({**config, "runs_dir": str(tmp_path)}))
        command = program("fit", "--config", path, "--name", path.stem)
        subprocess.run(**command, capture_output=True, timeout=120, check=True)
        ends.append(checkpoint(tmp_path / path.stem)["state_dict"])
    one, two = ends
    begun = {f"student.{key}": value for key, value in Backbone(checkpoint=pretrained).state_dict().items()}
    for key, value in one.items():
        torch.testing.assert_close(two[key], begun.get(key, value), atol=1e-6, rtol=1e-5)
        assert key not in begun or torch.equal(two[key], begun[key])
    assert one.keys() - begun.keys() >= {"student.model.head.weight", "student.model.head.bias"}


def test_one_backbone_that_is_student_and_teacher_is_not_trained_in_vain(tmp_path):
    both = Backbone(DEIT, timm_kwargs=HEADLESS | {"num_classes": 10})
    with pytest.raises(UserError, match="none of its weights is to be trained"):
        trained(Distiller(both, both), tmp_path)
