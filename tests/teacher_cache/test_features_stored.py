"""A teacher without a head, of another grid, whose tokens, class token and pooled features are stored."""
# ruff: noqa: F811 - fixtures are imported

from functools import partial

import numpy as np
import pytest
import torch
from caching import ONE_STEP, RGB, Setup, _work_goes_with_depth, assert_same_losses, folder  # noqa: F401

from distill_dynamics import Backbone, Term, UserError
from distill_dynamics.losses import ClassTokenKD, PooledKD, TokenKD
from distill_dynamics.models.save import read_weights, write_weights

SHAPE = {**RGB, "num_classes": 0, "embed_dim": 24, "depth": 12, "patch_size": 7}
TEACHERS = {
    "registers": {"name": "vit_small_patch14_reg4_dinov2", "timm_kwargs": SHAPE},
    "plain": {"name": "vit_small_patch14_dinov2", "timm_kwargs": SHAPE},
}


def of_all(standardise):
    return {
        "map": Term(partial(TokenKD, standardise=standardise), last=1),
        "class": Term(partial(ClassTokenKD, standardise=standardise), last=1),
        "pooled": Term(partial(PooledKD, standardise=standardise)),
    }


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("standardise", ["channel", "phi-s"])
def test_features_come_from_a_cache_as_from_the_teacher(folder, tmp_path, teacher, standardise):
    model = {"terms": of_all(standardise), "alpha": 0.0}
    setup = Setup(folder, model=model, trainer=ONE_STEP, teacher=TEACHERS[teacher])
    setup.cache(tmp_path)
    row = np.load(tmp_path / "view_000.npy", mmap_mode="r").dtype
    kinds = {name.split("_")[0] + name.rsplit("_", 2)[1]: row[name].shape for name in row.names}
    # The student's 2 x 2 patches, of the teacher's 4 x 4; the class token alone, of all prefix tokens.
    assert kinds == {"block24x2x2": (24, 2, 2), "block24": (24,), "teacher24": (24,)}
    assert_same_losses(setup, tmp_path)


def test_what_was_fitted_comes_with_the_cache(folder, tmp_path):
    setup = Setup(folder, {"terms": of_all("phi-s"), "alpha": 0.0}, teacher=TEACHERS["plain"])
    setup.cache(tmp_path)
    state, _ = read_weights(tmp_path / "fitted.safetensors")
    assert {name.partition(".")[0] for name in state} == {"map", "class", "pooled"}
    for name in ("map", "class", "pooled"):
        basis = state[f"{name}.0.basis"].double()
        torch.testing.assert_close(basis.T @ basis, torch.eye(24).double(), atol=1e-5, rtol=0)
        assert not torch.equal(basis, torch.eye(24).double())  # what it is before it is fitted
    setup.model["terms"] = of_all("channel")
    with pytest.raises(UserError, match="standardise was phi-s and is channel"):
        setup.fit(tmp_path)


def test_what_was_fitted_on_another_students_grid_is_refused(folder, tmp_path):
    """Of a block that is cheap, which is run in training: nothing else of the cache has a grid."""
    terms = {"first": Term(TokenKD, first=1), "pooled": Term(PooledKD)}
    setup = Setup(folder, {"terms": terms, "alpha": 0.0}, trainer=ONE_STEP)
    Backbone(**TEACHERS["plain"]).export(tmp_path / "teacher.safetensors")
    setup.teacher = {"checkpoint": tmp_path / "teacher.safetensors"}
    setup.cache(tmp_path / "cache")
    setup.fit(tmp_path / "cache")
    setup.student["timm_kwargs"] = {**RGB, "depth": 3, "patch_size": 7}
    with pytest.raises(
        UserError, match=r"first.0.map was fitted .* of \[24, 2, 2\] and sees \[24, 4, 4\] here"
    ):
        setup.fit(tmp_path / "cache")


def test_a_cache_that_does_not_say_on_which_grid_it_was_fitted_is_refused(folder, tmp_path):
    """As those of before did not; of what is stored the grid is known by its shape."""
    setup = Setup(
        folder, {"terms": {"first": Term(TokenKD, first=1), "pooled": Term(PooledKD)}, "alpha": 0.0}
    )
    setup.teacher, setup.trainer = TEACHERS["plain"], ONE_STEP
    terms = {"last": Term(TokenKD, last=1), "pooled": Term(PooledKD)}
    for name, given in (("run", setup.model["terms"]), ("stored", terms)):
        setup.model["terms"] = given
        setup.cache(tmp_path / name)
        file = tmp_path / name / "fitted.safetensors"
        state, facts = read_weights(file)
        del facts["seen"]
        write_weights(file, state, facts, None)
    setup.fit(tmp_path / "stored")
    setup.cache(tmp_path / "stored", verify=True)
    setup.model["terms"] = {"first": Term(TokenKD, first=1), "pooled": Term(PooledKD)}
    for use in (setup.fit, setup.cache):
        with pytest.raises(UserError, match=r"does not say on which student's grid .*first.0.map was fitted"):
            use(tmp_path / "run")
