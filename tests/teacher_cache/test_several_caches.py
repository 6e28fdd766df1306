"""Caches of several teachers, each in a folder of its own; and of one that has no head."""
# ruff: noqa: F811 - fixtures are imported

import re
from collections import namedtuple

import lightning.pytorch as pl
import pytest
from caching import (  # noqa: F401
    AUGMENT,
    RGB,
    TERMS,
    Setup,
    _work_goes_with_depth,
    assert_same_losses,
    folder,
    small_blocks,
)

from distill_dynamics import Backbone, Term, UserError
from distill_dynamics.losses import FitNet, PooledKD, SoftKD, TokenKD
from distill_dynamics.teacher_cache import files, plan
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.train.cache_teacher import CacheTeacher
from distill_dynamics.train.teachers import TeacherSettings

VIT = {"name": "vit_tiny_patch16_224", "timm_kwargs": {**RGB, "num_classes": 0, "depth": 12, "embed_dim": 24}}


class TwoTeachers(Setup):
    """A CaiT's logits and maps, and tokens of a ViT without a head; each may have a cache."""

    def __init__(self, folder, caches, **more):
        terms = {
            "maps": Term(FitNet, last=1, teacher="cait"),
            "kd": Term(SoftKD, weight=0.5, teacher="cait"),
            "tokens": Term(TokenKD, last=1, teacher="vit"),
            "pooled": Term(PooledKD, teacher="vit"),
        }
        super().__init__(folder, model={"terms": terms}, **more)
        self.caches = caches

        self.cached = True  # else training runs the teachers

    def made(self, kind, **more):
        pl.seed_everything(self.seed, verbose=False)
        student, teachers = Backbone(**self.student), {}
        for name, of in (("cait", self.teacher), ("vit", VIT)):
            cache = self.caches.get(name) if kind is CacheTeacher or self.cached else None
            teachers[name] = TeacherSettings(Backbone(**of), cache=cache and str(cache))
        return kind(student, None, teachers=teachers, **self.model), self.data_class(**self.data)

    def fit(self, cache=None):
        self.cached = cache is not None
        return super().fit(cache)


@pytest.fixture
def two(folder, tmp_path):
    return TwoTeachers(folder, {"cait": tmp_path / "a", "vit": tmp_path / "b"})


def test_a_run_with_both_caches_is_a_run_with_both_teachers(two, tmp_path, small_blocks, capsys):
    two.cache(None)
    printed = capsys.readouterr().out
    sizes = re.findall(
        r"^  teacher (\w+) \S+: 120 images x 2 views, \S+ \(\S+ a view\) in (\S+);", printed, re.M
    )
    assert sizes == [("cait", str(tmp_path / "a")), ("vit", str(tmp_path / "b"))]
    assert printed.index("teacher vit") < printed.index(f"{tmp_path / 'a'} is whole")  # before any is built
    assert_same_losses(two, "both")


def test_one_may_have_a_cache_and_the_other_run(folder, tmp_path, small_blocks):
    two = TwoTeachers(folder, {"vit": tmp_path / "b"})
    two.cache(None)
    assert not (tmp_path / "a").exists()
    assert_same_losses(two, "one")


def test_a_build_goes_on_where_it_stopped(two, tmp_path, monkeypatch, small_blocks):
    append, left = files.Writer._append, [6]  # blocks of the second cache are still to come then

    def stops(self, rows):
        left[0] -= self._block.first == self._next_row
        if left[0] < 0 and self.files.folder.name == "b":
            raise KeyboardInterrupt
        append(self, rows)

    monkeypatch.setattr(files.Writer, "_append", stops)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        two.cache(None)
    monkeypatch.setattr(files.Writer, "_append", append)
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("view_*")}
    two.cache(None)
    assert whole == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("view_*")}
    two.cache(None, verify=True)
    assert_same_losses(two, "both")


def test_the_room_is_for_all_of_them(two, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    needs = {}
    known = plan.check_room

    def noted(caches, cut):
        needs.update({key: lacking for key, _, lacking in caches})
        free = max(needs.values()) + 1000  # for either, not for both
        monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**9, 0, free))
        known(caches, cut)

    monkeypatch.setattr("distill_dynamics.train.cache_teacher.check_room", noted)
    with pytest.raises(UserError, match=r"model.teachers.vit.cache: the cache, with those before it, takes"):
        two.cache(None)
    assert len(needs) == 2
    assert not (tmp_path / "a").exists()


def test_a_mistake_names_the_setting_of_its_teacher(folder, two, tmp_path):
    with pytest.raises(
        UserError, match=rf"^model\.teachers\.cait\.cache: {tmp_path / 'a'}/cache.json does not"
    ):
        two.fit(True)
    with pytest.raises(
        UserError, match=rf"^model\.teacher_cache: {tmp_path / 'c'}/cache.json does not exist"
    ):
        Setup(folder).fit(tmp_path / "c")


def test_where_a_cache_is_to_be_is_said(folder, two, tmp_path):
    with pytest.raises(UserError, match=r"--out is the folder of the one model.* set model.teachers"):
        two.cache(tmp_path / "out")
    with pytest.raises(UserError, match=r"give model\.teachers\.cait\.cache"):
        TwoTeachers(folder, {}).cache(None)
    with pytest.raises(UserError, match="give --out"):
        Setup(folder).cache(None)


# --- without a head -----------------------------------------------------------------------------------


def headless(folder, views=1, **more):
    terms = {"tokens": Term(TokenKD, last=1), "pooled": Term(PooledKD)}
    student = {"terms": terms, "alpha": 0.0}
    setup = Setup(folder, model=student, data={"views": views, **more.pop("data", {})}, **more)
    setup.teacher = VIT
    return setup


@pytest.mark.parametrize("views", [1, 2])
def test_tokens_and_pooled_features_of_a_teacher_without_a_head(
    folder, tmp_path, capsys, small_blocks, views
):
    setup = headless(folder, views)
    setup.cache(tmp_path / "cache")
    printed = capsys.readouterr().out
    unit = "view" if views == 1 else "views"
    assert f"120 images x {views} {unit}, " in printed
    assert "tokens           map, student block 3 with teacher block 12: stored" in printed
    assert "pooled           pooled: stored" in printed
    for word in ("class", "logit", "acc", "top"):
        assert word not in printed.lower().replace(str(tmp_path).lower(), "")
    setup.cache(tmp_path / "cache", top_k=7)  # says nothing here
    setup.cache(tmp_path / "cache", verify=True)
    assert_same_losses(setup, tmp_path / "cache")


def test_what_a_student_of_a_smaller_grid_sees_is_what_is_stored(folder, tmp_path):
    """A teacher of 4 x 4 patches beside a student of 2 x 2: a quarter of the numbers."""
    setup = headless(folder)
    setup.teacher = {**VIT, "timm_kwargs": {**VIT["timm_kwargs"], "patch_size": 7}}
    setup.cache(tmp_path / "cache")
    shapes = {field.shape for field in TeacherCache.read(tmp_path / "cache").layout.fields.values()}
    assert shapes == {(24, 2, 2), (24,)}
    assert_same_losses(setup, tmp_path / "cache")
