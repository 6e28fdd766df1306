"""Answers that lie in the wrong place: rows or views that were swapped. And what is cheap is counted."""

import json
import os
import types

import numpy as np
import pytest
import torch
from test_blocks import IMAGES, begun, layout, order, written  # noqa: F401

from distill_dynamics import Backbone, UserError
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.files import rows_checksum
from distill_dynamics.teacher_cache.plan import cheap_depth, operations


@pytest.fixture
def cache(written, order):  # noqa: F811
    return TeacherCache(written.folder, {}, written.layout, {}, 10, 1.0, 0, {}, {}, rows_checksum(order))


def test_what_was_written_passes_and_is_read_back(cache):
    cache.check_finished()
    cache.check_samples()
    (cache.folder / "cache.json").write_text(json.dumps(cache.to_json()))
    TeacherCache.read(cache.folder).check_finished()


def test_images_that_changed_places_are_refused(cache):
    rows = np.load(cache.folder / "rows.npy")
    rows[[2, 7]] = rows[[7, 2]]
    np.save(cache.folder / "rows.npy", rows)
    with pytest.raises(UserError, match=r"rows\.npy is not what was written"):
        cache.check_finished()


@pytest.mark.parametrize("records_too", [False, True])
def test_views_that_changed_places_are_refused_before_training(cache, records_too):
    def swap(a, b):
        kept = a.with_suffix(".kept")
        os.rename(a, kept)
        os.rename(b, a)
        os.rename(kept, b)

    swap(cache.files.view(0), cache.files.view(2))
    if records_too:
        blocks = cache.layout.blocks()
        for one in [block for block in blocks if block.view == 0]:
            swap(cache.files.record(one), cache.files.record(one._replace(view=2)))
    for _ in range(3):  # whichever block is drawn
        with pytest.raises(UserError, match=r"view_000\.npy: rows .* are damaged"):
            cache.check_samples()


def test_ranks_share_the_views_out(cache):
    path = cache.files.view(1)
    content = path.read_bytes()
    path.write_bytes(content[: -16 * IMAGES] + bytes(16 * IMAGES))
    cache.check_samples(0, 2)
    with pytest.raises(UserError, match=r"view_001\.npy"):
        cache.check_samples(1, 2)


def test_a_cache_of_an_earlier_version_is_still_read(cache):
    """Its cache.json has no checksum of the rows, its records nothing but that of the block."""
    content = cache.to_json()
    del content["rows_sha256"]
    (cache.folder / "cache.json").write_text(json.dumps(content))
    for record in (cache.folder / "done").iterdir():
        record.write_text(json.dumps({"sha256": json.loads(record.read_text())["sha256"]}))
    earlier = TeacherCache.read(cache.folder)
    earlier.check_finished()
    earlier.check_samples()


@pytest.mark.parametrize(("depth", "cheap"), [(9, 0), (12, 1), (24, 2)])
def test_a_tenth_of_the_teacher_is_counted_in_blocks_and_not_timed(depth, cheap):
    """All blocks are alike, and patches and head are next to nothing."""
    kwargs = {
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "num_classes": 10,
        "embed_dim": 32,
        "num_heads": 2,
    }
    views = types.SimpleNamespace(
        teacher=Teacher(Backbone("deit_tiny_patch16_224", timm_kwargs={**kwargs, "depth": depth})),
        data=types.SimpleNamespace(image_size=28, mean=(0.5,)),
    )
    assert {cheap_depth(views) for _ in range(3)} == {cheap}
    one, two = (operations(views, [n], logits=False) for n in (1, 2))
    # 16 patches and a class token of 32 channels: qkv, attention, projection and MLP, two operations each.
    tokens, width = 17, 32
    assert two - one == 2 * (tokens * 12 * width**2 + 2 * tokens**2 * width)
    assert torch.is_grad_enabled()
