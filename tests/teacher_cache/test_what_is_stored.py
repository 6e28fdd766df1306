"""Teachers, losses and images that are hard to store."""
# ruff: noqa: F811 - fixtures are imported

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caching import (  # noqa: F401 - fixtures
    ONE_STEP,
    RGB,
    Setup,
    _work_goes_with_depth,
    assert_same_losses,
    folder,
    losses_of,
)

from distill_dynamics import Term
from distill_dynamics.data.sources import FileSource
from distill_dynamics.errors import UserError
from distill_dynamics.losses import SpectralKD
from distill_dynamics.losses.logits import SoftKD, TopClasses, soft_kd
from distill_dynamics.losses.projector import standardise
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.teacher_cache.scale import Scale
from distill_dynamics.teacher_cache.teacher import CachedTeacher


class FirstChannels(torch.nn.Module):
    """Sees as many of the teacher's channels as the student has: the shape that SpectralKD pools to."""

    def __init__(self, student_channels, teacher_channels):
        super().__init__()

    def cacheable(self, student_map, teacher_map):
        return teacher_map[:, : student_map.shape[1]]

    def forward(self, student_map, teacher_map):
        return F.mse_loss(student_map, teacher_map[:, : student_map.shape[1]])


def test_losses_that_see_other_parts_of_one_block_have_fields_of_their_own(folder, tmp_path):
    terms = {
        "pooled": Term(SpectralKD, last=1),
        "first_channels": Term(FirstChannels, last=1),
        "same": Term(SpectralKD, last=1),
    }
    setup = Setup(folder, model={"terms": terms}, trainer=ONE_STEP)
    setup.cache(tmp_path)
    fields = np.load(tmp_path / "view_000.npy", mmap_mode="r").dtype.names
    assert len([name for name in fields if name.startswith("block")]) == 2
    online, cached = losses_of(setup.fit()), losses_of(setup.fit(tmp_path))
    assert online["train/loss_pooled"] != pytest.approx(online["train/loss_first_channels"], rel=0.01)
    assert cached == pytest.approx(online, rel=1e-3, abs=5e-5)


@pytest.fixture
def teacher_maps(monkeypatch):
    """Changes the maps of every teacher."""

    def change(how):
        forward = Backbone.forward

        def changed(self, images, layers=(), logits=True, **others):
            found = forward(self, images, layers, logits, **others)
            if not self.name.startswith("cait"):
                return found
            return found._replace(maps=[how(x) for x in found.maps])

        monkeypatch.setattr(Backbone, "forward", changed)

    return change


def test_maps_beyond_half_precision_are_stored(folder, tmp_path, teacher_maps):
    teacher_maps(lambda x: 1e5 * x + 3e6)
    setup = Setup(folder, trainer=ONE_STEP)
    setup.cache(tmp_path)
    setup.cache(tmp_path, verify=True)
    assert_same_losses(setup, tmp_path)


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (30, 0.3), (300, 0.1), (1e6, 1e4), (0, 1e-7)])
def test_a_standardised_map_keeps_its_precision(mean, deviation):
    torch.manual_seed(0)
    sample, x = (deviation * torch.randn(8, 4, 7, 7).double() + mean for _ in range(2))
    sample[:, 3] = x[:, 3] = mean
    x[0, 3] += 3 * deviation  # a channel that was still in the sample
    scale = Scale.of(sample)
    found = scale.restored(scale.stored(x.float()).half())
    torch.testing.assert_close(found, x.float(), rtol=1e-6, atol=3e-3 * deviation)
    if deviation > 1e-3:
        of_exact, of_stored = standardise(x.float())[0], standardise(found)[0]
        assert (of_exact - of_stored)[:, :3].square().mean().sqrt() < 5e-4


def test_an_answer_that_is_no_number_is_refused_by_name(folder, tmp_path, teacher_maps):
    seen = []

    def later(x):
        seen.append(x)
        return x if len(seen) < 60 else x / 0

    teacher_maps(later)
    with pytest.raises(UserError, match=r"of image .* cannot be stored"):
        Setup(folder).cache(tmp_path)


def test_a_cache_of_logits_serves_cheap_blocks_that_it_never_heard_of(folder, tmp_path):
    Setup(folder, model={"terms": {}}).cache(tmp_path)
    first, last = (
        Setup(folder, model={"terms": {"a": Term(SpectralKD, **{end: 1})}}, trainer=ONE_STEP)
        for end in ("first", "last")
    )
    assert_same_losses(first, tmp_path, rel=1e-4)
    with pytest.raises(UserError, match="no map of the teacher's block 12"):
        last.fit(tmp_path)


def test_a_teacher_without_classes(folder, tmp_path):
    headless = {"timm_kwargs": {**RGB, "embed_dim": 24, "depth": 12, "num_classes": 0}}
    setup = Setup(folder, model={"alpha": 0.0}, teacher=headless, trainer=ONE_STEP)
    setup.cache(tmp_path)
    setup.cache(tmp_path, verify=True)
    assert_same_losses(setup, tmp_path)


def test_maps_in_bfloat16(folder, tmp_path):
    setup = Setup(
        folder,
        model={"terms": {"last": Term(SpectralKD, last=1)}},
        teacher={"name": "resnet10t", "timm_kwargs": {"num_classes": 10}},
        trainer={**ONE_STEP, "precision": "bf16-mixed"},
    )
    setup.cache(tmp_path)
    setup.cache(tmp_path, verify=True)
    assert_same_losses(setup, tmp_path, rel=1e-2)


def test_an_image_that_was_unreadable_has_no_answer(folder, tmp_path):
    path = Path(folder, "train", "class_0", "0.png")
    good = path.read_bytes()
    every = {"limit_train_batches": 1.0, "max_epochs": 1}
    setup = Setup(folder, data={"skip_unreadable": True}, trainer=every)
    cache = tmp_path / "cache"
    try:
        path.write_bytes(bytes(len(good)))
        setup.cache(cache)
        setup.fit(cache)
    finally:
        path.write_bytes(good)
    mended = Setup(folder, data={"skip_unreadable": True, "repeats": 1}, trainer=every)
    record = "view_000_00000.json"
    with pytest.raises(UserError, match=f"image 0 of the training data could not be read.*{record}"):
        mended.fit(cache)
    for record in (cache / "done").iterdir():
        record.unlink()
    mended.cache(cache)
    mended.fit(cache)


def test_the_likeliest_classes_keep_their_documented_distance(folder, tmp_path, monkeypatch):
    """At every step of a training with 3 of 10 classes: the loss and its gradient, beside the whole ones."""
    setup = Setup(folder, model={"temperature": 2.0, "terms": {}})
    setup.cache(tmp_path, top_k=3)
    seen, whole, forward, answer = [], [], SoftKD.forward, CachedTeacher.__call__

    def both(self, batch, wanted, stored=None):
        whole.append(self.teacher.logits(batch))
        return answer(self, batch, wanted, stored)

    def watched(self, student_logits, teacher_logits, progress=0.0):
        loss = forward(self, student_logits, teacher_logits, progress)
        if not isinstance(teacher_logits, TopClasses):  # the dry image
            return loss
        top, t, b, n = teacher_logits, self.temperature, len(student_logits), 10 - 3
        full = soft_kd(student_logits, whole[-1], t)
        q = (student_logits / t).log_softmax(1).scatter(1, top.classes.long(), torch.nan)
        apart = q.nan_to_num(-torch.inf).amax(1) - q.nan_to_num(torch.inf).amin(1)
        bound = (top.rest * (np.log(n) + apart)).mean() * t**2
        of_cut, of_full = (torch.autograd.grad(x, student_logits, retain_graph=True)[0] for x in (loss, full))
        off = (of_cut - of_full).abs().sum(1)
        seen.append(
            (
                float(loss.detach() - full.detach()),
                bound.item(),
                float((off / (2 * top.rest * (1 - 1 / n) * t / b)).max()),
            )
        )
        return loss

    monkeypatch.setattr(CachedTeacher, "__call__", both)
    monkeypatch.setattr(SoftKD, "forward", watched)
    setup.fit(tmp_path)
    off, bound, gradient = np.array(seen).T
    assert len(seen) == 15
    assert (np.abs(off) < bound + 1e-3).all()
    assert (gradient < 1.01).all()
    assert (np.abs(off) > 1e-4).any()  # it is not the whole loss


def test_how_long_it_takes_is_said_with_the_images_that_have_to_be_read(
    folder, tmp_path, monkeypatch, capsys
):
    image = FileSource.image

    def slowly(self, *args):
        time.sleep(0.02)
        return image(self, *args)

    monkeypatch.setattr(FileSource, "image", slowly)
    Setup(folder, model={"terms": {}}, data={"views": 1}).cache(tmp_path)
    minutes, seconds = re.search(r"the rest takes about (\d+):(\d+)$", capsys.readouterr().out, re.M).groups()
    assert 60 * int(minutes) + int(seconds) >= int(120 * 0.02)
