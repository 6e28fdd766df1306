import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import timm.optim
import timm.scheduler
import torch
import torch.nn.functional as F
from conftest import VIT
from torch import nn

from distill_dynamics import Backbone, Distiller, Term, UserError
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.losses import ProjectorKD, SpectralKD
from distill_dynamics.schedule import WarmupCosine


def student(**kwargs):
    return Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2, **kwargs})


def teacher(**kwargs):
    return Backbone("cait_xxs24_224", timm_kwargs={**VIT, "embed_dim": 24, "depth": 3, **kwargs})


def data(**kwargs):
    return FashionMNISTSample(**{"batch_size": 8, "eval_batch_size": 100, **kwargs})


def trainer(tmp_path, **kwargs):
    settings = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return pl.Trainer(**{**settings, **quiet, "default_root_dir": tmp_path, **kwargs})


class Stop(pl.Callback):
    """Looks at the module at a given moment of a real run."""

    def __init__(self, hook, look):
        setattr(self, hook, lambda trainer, module, *args: look(trainer, module, *args))


class MeanGap(nn.Module):
    """A loss of a user's: what any class with this shape can be."""

    def __init__(self, student_channels, teacher_channels, power: float = 2.0):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.power = power

    def forward(self, student_map, teacher_map):
        return ((self.scale * student_map.mean() - teacher_map.mean()).abs() ** self.power).mean()


def test_total_is_what_timm_and_torch_compute(tmp_path):
    torch.manual_seed(0)
    s, t = student(), teacher()
    t.set_normalisation((0.5,), (0.25,))
    t.has_weights = True
    distiller = Distiller(
        s,
        t,
        {"spectral": Term(lambda a, b: SpectralKD(a, b), weight=0.3, first=1, last=1)},
        alpha=0.7,
        temperature=2.0,
    )
    seen = {}

    def keep(trainer, module, outputs, batch, index):
        if index == 0:
            seen.update(batch=batch, loss=outputs["loss"].item())

    before = {k: v.clone() for k, v in s.model.state_dict().items()}
    trainer(tmp_path, callbacks=[Stop("on_train_batch_end", keep)]).fit(distiller, datamodule=data())

    images, targets = seen["batch"]
    plain = timm.create_model("deit_tiny_patch16_224", **VIT, depth=2).train()
    plain.load_state_dict(before)
    x = images
    y = (x * 0.3530 + 0.2860 - 0.5) / 0.25
    final, maps = plain.forward_intermediates(x, norm=False)
    logits = plain.forward_head(final)
    with torch.no_grad():
        t_final, t_maps = t.model.forward_intermediates(y, norm=False)
        t_logits = t.model.forward_head(t_final)
    ce = F.cross_entropy(logits, targets, label_smoothing=0.1)
    kd = F.kl_div(
        (logits / 2).log_softmax(1), (t_logits / 2).log_softmax(1), log_target=True, reduction="batchmean"
    )

    def spectral(a, b):
        b = F.adaptive_avg_pool1d(b.flatten(2).transpose(1, 2), a.shape[1]).transpose(1, 2).view_as(a)
        a, b = (torch.fft.rfft2(m, norm="ortho") for m in (a, b))
        return F.mse_loss(torch.stack([a.real, a.imag]), torch.stack([b.real, b.imag]))

    feature = (spectral(maps[0], t_maps[0]) + spectral(maps[1], t_maps[2])) / 2
    expected = 0.3 * ce + 0.7 * 4 * kd + 0.3 * feature
    assert seen["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_teacher_is_frozen_and_outside_of_everything(tmp_path):
    distiller = Distiller(student(), teacher(), {"p": Term(ProjectorKD, last=1)})
    before = {k: v.clone() for k, v in distiller.teacher.backbone.state_dict().items()}
    modes = []
    look = Stop(
        "on_train_batch_start",
        lambda tr, m, *a: modes.append(m.teacher.backbone.training or not m.student.training),
    )
    runner = trainer(tmp_path, callbacks=[look])
    runner.fit(distiller, datamodule=data())
    distiller.train()
    assert modes == [False, False]
    assert not any(module.training for module in distiller.teacher.backbone.modules())
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.backbone.state_dict().items())
    ours = {id(p) for p in distiller.teacher.backbone.parameters()}
    optimised = {id(p) for group in runner.optimizers[0].param_groups for p in group["params"]}
    assert not ours & optimised
    runner.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"student", "terms"}


def test_teacher_follows_a_move_of_device_and_dtype():
    distiller = Distiller(student(), teacher())
    distiller.to(torch.float64)
    assert {p.dtype for p in distiller.teacher.backbone.parameters()} == {torch.float64}


def test_projector_learns_and_survives_a_checkpoint(tmp_path):
    pl.seed_everything(0)
    distiller = Distiller(student(), teacher(), {"p": Term(ProjectorKD, last=1)})
    before = [p.clone() for p in distiller.terms.parameters()]
    runner = trainer(tmp_path)
    runner.fit(distiller, datamodule=data())
    after = list(distiller.terms.parameters())
    assert len(after) == 2  # weight and bias
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    runner.save_checkpoint(tmp_path / "x.ckpt")
    fresh = Distiller(student(), teacher(), {"p": Term(ProjectorKD, last=1)})
    fresh.load_state_dict(torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"], strict=True)
    assert all(torch.equal(a, b) for a, b in zip(fresh.terms.parameters(), after, strict=True))


def test_accuracy_and_loss_are_those_of_a_plain_loop(tmp_path):
    pl.seed_everything(0)
    t = teacher()
    distiller, images = Distiller(student(), t), data(eval_batch_size=64)
    runner = trainer(tmp_path, limit_val_batches=1.0)
    runner.fit(distiller, datamodule=images)
    source = images.sources["val"]
    x = torch.from_numpy((source.pixels[:, None] / 255 - 0.2860) / 0.3530).float()
    y = torch.from_numpy(source.targets)
    with torch.no_grad():
        logits = distiller.student.model.eval()(x)
        teacher_logits = t.model((x * 0.3530 + 0.2860 - t.mean[0]) / t.std[0])
    top5 = logits.topk(5).indices.eq(y[:, None]).any(1).float().mean().item() * 100
    metrics = runner.callback_metrics
    assert metrics["val/acc1"].item() == pytest.approx(
        logits.argmax(1).eq(y).float().mean().item() * 100, abs=1e-4
    )
    assert metrics["val/acc5"].item() == pytest.approx(top5, abs=1e-4)
    assert metrics["val/loss"].item() == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    expected = teacher_logits.argmax(1).eq(y).float().mean().item() * 100
    assert distiller.teacher.accuracy["acc1"] == pytest.approx(expected, abs=1e-4)


def test_padding_items_count_nowhere(tmp_path):
    distiller = Distiller(student())
    runner = trainer(tmp_path)
    runner.fit(distiller, datamodule=data())
    images, targets = torch.randn(6, 1, 28, 28), torch.tensor([1, 2, 3, 4, -100, -100])
    distiller.eval()
    for batch in ((images, targets), (images[4:], targets[4:])):  # some padding, nothing but padding
        distiller.validation_step(batch, 0)
    with torch.no_grad():
        logits = distiller(images[:4])
    assert distiller.val_loss.compute().item() == pytest.approx(
        F.cross_entropy(logits, targets[:4]).item(), rel=1e-5
    )
    hits = logits.argmax(1).eq(targets[:4]).float().mean().item() * 100
    assert distiller.val_metrics.compute()["acc1"].item() == pytest.approx(hits)


def test_weight_decay_groups_are_timms(tmp_path):
    distiller = Distiller(student(), teacher(), {"p": Term(ProjectorKD, last=1)})
    runner = trainer(tmp_path)
    runner.fit(distiller, datamodule=data())
    module = nn.ModuleDict({"student": distiller.student.model, "terms": distiller.terms})
    exempt = [f"student.{name}" for name in distiller.student.model.no_weight_decay()]
    expected = timm.optim.param_groups_weight_decay(module, 0.05, no_weight_decay_list=exempt)
    for wanted in expected:
        decay = wanted["weight_decay"]
        ours = [g for g in runner.optimizers[0].param_groups if g["weight_decay"] == decay]
        assert {id(p) for g in ours for p in g["params"]} == {id(p) for p in wanted["params"]}


def test_linear_rule_scales_to_the_global_batch(tmp_path):
    rates = {}
    for accumulate in (1, 2):
        distiller = Distiller(
            student(), scheduler=None, optimizer=lambda params: torch.optim.SGD(params, lr=0.1), lr_images=64
        )
        runner = trainer(tmp_path, accumulate_grad_batches=accumulate)
        runner.fit(distiller, datamodule=data())
        rates[accumulate] = runner.optimizers[0].param_groups[0]["lr"]
    assert rates == {1: pytest.approx(0.1 * 8 / 64), 2: pytest.approx(0.1 * 16 / 64)}


def test_rates_of_a_run_are_timms_cosine_one_epoch_late(tmp_path):
    rates = []
    keep = Stop("on_train_epoch_end", lambda tr, m: rates.append(tr.optimizers[0].param_groups[0]["lr"]))
    adam = lambda params: torch.optim.AdamW(params, lr=5e-4)  # noqa: E731
    distiller = Distiller(student(), optimizer=adam, scheduler=WarmupCosine, lr_images=512)
    trainer(tmp_path, max_epochs=8, limit_train_batches=1, callbacks=[keep]).fit(distiller, datamodule=data())
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=5e-4 * 8 / 512)
    schedule = timm.scheduler.CosineLRScheduler(
        reference, t_initial=8, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6
    )
    expected = []
    for epoch in range(8):
        expected.append(reference.param_groups[0]["lr"])
        schedule.step(epoch)
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-12)


def test_a_users_loss_trains_by_constructor_alone(tmp_path):
    distiller = Distiller(student(), teacher(), {"gap": Term(MeanGap, weight=1.0, pairs=[(1, 1), (-1, 2)])})
    assert distiller.terms["gap"].pairs == [(1, 1), (2, 2)]
    runner = trainer(tmp_path)
    runner.fit(distiller, datamodule=data())
    assert all(loss.scale.item() != 1.0 for loss in distiller.terms["gap"])


def test_supervised_training_without_a_teacher_needs_no_alpha(tmp_path):
    adam = lambda params: torch.optim.AdamW(params, lr=3e-3)  # noqa: E731
    distiller = Distiller(student(), optimizer=adam, scheduler=None, lr_images=None)
    runner = trainer(tmp_path, limit_train_batches=40, max_epochs=2, limit_val_batches=1.0)
    runner.fit(distiller, datamodule=data(batch_size=32))
    assert distiller.weights_at(0.0) == {"ce": 1.0}
    assert runner.callback_metrics["val/acc1"] > 20  # chance is 10


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Distiller(student(), alpha=0.5), ["teacher", "alpha"]),
        (lambda: Distiller(student(), terms={"p": Term(ProjectorKD, last=1)}), ["teacher", "terms.p"]),
        (lambda: Distiller(student(), teacher(), alpha=1.5), ["alpha", "1.5"]),
        (lambda: Distiller(student(), teacher_precision="32-true"), ["teacher_precision"]),
        (lambda: Distiller(student(), teacher(), teacher_precision="bf16"), ["'bf16'", "bf16-mixed"]),
        (lambda: Distiller(student(), teacher(), {"items": Term(ProjectorKD, last=1)}), ["'items'"]),
        (lambda: Distiller(student(), teacher(), {"p": Term(ProjectorKD, last=5)}), ["terms.p", "5"]),
        (lambda: Distiller(student(), teacher(), {"p": Term(ProjectorKD, pairs=[(9, 1)])}), ["terms.p", "9"]),
    ],
)
def test_a_wrong_model_is_one_line(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (lambda: (student(num_classes=7), None), ["7 classes", "10", "num_classes"]),
        (lambda: (student(), teacher(num_classes=7)), ["model.teacher", "7"]),
        (lambda: (student(in_chans=4), None), ["model.student", "in_chans: 1"]),
        (lambda: (student(img_size=56), None), ["model.student", "56 x 56", "28 x 28", "img_size"]),
        (lambda: (student(), teacher(img_size=50)), ["model.teacher", "50 px", "img_size: 42 or 56"]),
    ],
)
def test_data_that_do_not_fit_are_one_line(tmp_path, models, words):
    with pytest.raises(UserError) as error:
        trainer(tmp_path).fit(Distiller(*models()), datamodule=data())
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_a_foreign_checkpoint_is_no_run_to_continue(tmp_path):
    class Foreign(pl.LightningModule):
        def configure_optimizers(self):
            return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)

    runner = trainer(tmp_path)
    runner.strategy.connect(Foreign())
    runner.save_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"model\.student\.checkpoint"):
        trainer(tmp_path).fit(
            Distiller(student()), datamodule=data(), ckpt_path=tmp_path / "foreign.ckpt", weights_only=True
        )
