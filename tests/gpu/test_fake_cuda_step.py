"""What a step asks of a GPU, seen without one: on a device that has shapes and no numbers."""

import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import VIT
from fake_cuda import CUDA, Watch, fake_cuda, in_a_child, moved
from torch import nn

from distill_dynamics import Backbone, Distiller, Term, losses
from distill_dynamics.callbacks import EMA
from distill_dynamics.callbacks.epoch_rows import EpochRows
from distill_dynamics.callbacks.finite import FiniteLoss
from distill_dynamics.dynamics.measures.cka import linear_cka
from distill_dynamics.dynamics.measures.entropy import image_entropies
from distill_dynamics.dynamics.measures.magnitude import image_magnitudes
from distill_dynamics.dynamics.measures.spectrum import image_spectra
from distill_dynamics.losses import ClassTokenKD, ProjectorKD, SoftKD, SpectralKD
from distill_dynamics.models.normalise import Renormalise
from distill_dynamics.schedule import Cosine, Linear
from distill_dynamics.train.metrics import accuracies
from distill_dynamics.train.optimise import decay_groups
from distill_dynamics.train.reads import BY_BLOCK, words_of

BATCH = 8
LOSSES = [loss for name in losses.__all__ if inspect.isclass(loss := getattr(losses, name))]


class Waits(nn.Module):
    """What a user's loss does to a GPU with one word too many."""

    def forward(self, student_map, teacher_map):
        scale = teacher_map.abs().mean().item()
        return (student_map.mean() - teacher_map.mean()).square() / scale


class FromHost(nn.Module):
    def forward(self, student_map):
        weights = torch.linspace(0, 1, student_map.shape[1])
        return (student_map.mean((0, 2, 3)) * weights.to(student_map.device)).sum()


class LeftOnHost(nn.Module):
    """A tensor that is no buffer stays where it was made."""

    def __init__(self):
        super().__init__()
        self.weights = torch.ones(7)

    def forward(self, student_logits):
        return (student_logits[:, :7] * self.weights).mean()


class AsksNumbers(FiniteLoss):
    def on_before_backward(self, trainer, pl_module, loss):
        assert loss < 1e9


def term(loss):
    """One of a loss, on the first blocks if it reads blocks, with a weight that changes."""
    by_block = any(word in BY_BLOCK for _, word in words_of("t", loss).values())
    return Term(loss, weight=Linear(0.1, 1.0), first=int(by_block))


def steps(terms, precision=torch.bfloat16, callbacks=(), steps=2, name="cait_xxs24_224", **teacher):
    """Trains on the fake device as a Trainer would, but for the backward pass; gives what was seen after
    the first step, which brings to the device what stays there."""
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2, "embed_dim": 16})
    taught = Backbone(name, timm_kwargs={**VIT, "embed_dim": 24, "depth": 3} | teacher)
    distiller = Distiller(student, taught, terms)
    data = SimpleNamespace(mean=(0.3,), std=(0.4,), batch_size=BATCH, image_size=VIT["img_size"])
    distiller.trainer = trainer = SimpleNamespace(
        max_epochs=1, max_steps=-1, num_training_batches=100, accumulate_grad_batches=1, current_epoch=0,
        global_step=0, global_rank=0, world_size=1, is_last_batch=False, log_every_n_steps=50,
        sanity_checking=False, datamodule=data, state=SimpleNamespace(fn="fit"),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )  # fmt: skip
    distiller._draws = lambda batch_idx: nullcontext()  # a generator there is in CUDA alone
    distiller.renormalise = Renormalise(data.mean, data.std, student.mean, student.std)
    distiller.teacher.take_images_of(data)
    callbacks = [EpochRows(), FiniteLoss(), *callbacks]
    for callback in callbacks:
        callback.setup(trainer, distiller, "fit")
    with fake_cuda():
        moved(distiller, CUDA)
        distiller._device = CUDA
        for callback in callbacks:
            if isinstance(callback, EMA):
                moved(callback.average, CUDA)
                callback.average.n_averaged = torch.tensor(1)
                callback._step = 0
        groups = decay_groups(distiller, {f"student.{name}" for name in student.no_weight_decay()})
        optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
        batch = torch.empty(BATCH, 1, 28, 28, device=CUDA), torch.empty(BATCH, dtype=torch.int64, device=CUDA)
        for number in range(steps):
            with Watch() as watch:
                step(distiller, trainer, callbacks, optimizer, batch, number, precision)
    return watch


def step(distiller, trainer, callbacks, optimizer, batch, number, precision):
    """In Lightning's order. Gradients come from nowhere: autograd asks a real device for its streams."""
    for callback in callbacks:
        callback.on_train_batch_start(trainer, distiller, batch, number)
    torch.set_autocast_enabled("cuda", precision is not None)
    torch.set_autocast_dtype("cuda", precision or torch.float32)
    try:
        loss = distiller.training_step(batch, number)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
    assert loss.device == CUDA
    for callback in callbacks:
        callback.on_before_backward(trainer, distiller, loss)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            assert weight.device == CUDA
            weight.grad = torch.empty_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    trainer.global_step += 1
    for callback in callbacks:
        callback.on_train_batch_end(trainer, distiller, loss, batch, number)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@in_a_child
def test_a_step_with_every_loss_waits_for_nothing_and_brings_nothing(precision):
    terms = {loss.__name__: term(loss) for loss in LOSSES if loss is not ClassTokenKD}
    seen = steps(terms, precision, [EMA(Cosine(0.9, 0.99))])
    assert seen.waits == []
    assert seen.copies == []
    assert seen.indeterminate == []


@in_a_child
def test_a_loss_of_class_tokens_waits_for_nothing():
    """CaiT's blocks have none."""
    seen = steps({"class_token": Term(ClassTokenKD, first=1)}, name="deit_tiny_patch16_224")
    assert seen.waits == []
    assert seen.copies == []


@in_a_child
def test_losses_of_two_grids_and_of_two_widths_wait_for_nothing():
    terms = {"spectral": Term(SpectralKD, first=1), "projector": Term(ProjectorKD, first=1)}
    seen = steps(terms, patch_size=7)
    assert seen.waits == []
    assert seen.copies == []


@in_a_child
def test_a_number_that_is_asked_for_is_found():
    with pytest.raises(Exception, match=r"item|data-dependent|_local_scalar_dense"):
        steps({"waits": Term(Waits, first=1)})


@in_a_child
def test_a_tensor_that_is_brought_in_every_step_is_found():
    seen = steps({"brought": Term(FromHost, first=1)})
    assert seen.copies != []


@in_a_child
def test_a_tensor_that_was_left_behind_is_found():
    with pytest.raises(Exception, match="device"):
        steps({"left": Term(LeftOnHost)})


@in_a_child
def test_a_callback_that_asks_for_the_loss_is_found():
    with pytest.raises(Exception, match=r"data-dependent|_local_scalar_dense|is_nonzero"):
        steps({"kd": Term(SoftKD)}, callbacks=[AsksNumbers()])


@in_a_child
def test_counting_hits_waits_for_nothing():
    """In validation; a mask of what is padding would wait in every batch."""
    metrics = accuracies(10)
    with fake_cuda(), Watch() as seen:
        moved(metrics, CUDA)
        for _ in range(2):
            logits = torch.empty(BATCH, 10, device=CUDA)
            metrics.update(logits, torch.empty(BATCH, dtype=torch.int64, device=CUDA))
        metrics.compute()
    assert seen.waits == []
    assert seen.copies == []


@pytest.mark.parametrize(
    "measure", [image_magnitudes, image_spectra, lambda x: linear_cka(x[0, 0], x[0, 1], x[1, 0])]
)
@in_a_child
def test_measures_have_deterministic_forms(measure):
    """Those of activations; what is made of covariances is computed on the host, in float64."""
    with fake_cuda(), Watch() as seen:
        measure(torch.empty(4, 8, 8, 8, device=CUDA))
    assert seen.indeterminate == []


def test_entropy_has_a_deterministic_form():
    """On the host, as it counts numbers, of which a fake device has none; both count alike."""
    with Watch() as seen:
        image_entropies(torch.randn(4, 8, 8, 8), (-1.0, 1.0))
    assert seen.indeterminate == []
