import json
import os
import pickle
import resource
from dataclasses import asdict

import numpy as np
import pytest

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError
from distill_dynamics.teacher_cache import layout as layouts
from distill_dynamics.teacher_cache import reader
from distill_dynamics.teacher_cache.files import CacheFiles, Writer
from distill_dynamics.teacher_cache.layout import Field, Layout
from distill_dynamics.teacher_cache.reader import CacheReader

FIELDS = {"log_probs": Field((3,), "float16"), "classes": Field((3,), "uint16"), "rest": Field((), "float32")}
IMAGES, VIEWS = 10, 3


@pytest.fixture
def layout(monkeypatch):
    monkeypatch.setattr(layouts, "MIN_ROWS", 4)
    return Layout.of(IMAGES, VIEWS, FIELDS)


@pytest.fixture
def begun(tmp_path, layout, order):
    """The files of a cache in which nothing is written."""
    np.save(tmp_path / "rows.npy", order)
    files = CacheFiles(tmp_path, layout)
    files.make()
    return files


@pytest.fixture
def written(begun, order):
    """A whole cache."""
    blocks = begun.layout.blocks()
    writer = Writer(begun, blocks)
    for part in np.array_split(rows_of(begun.layout, order, blocks), 7):  # batches end where they like
        writer.write(part)
    return begun


@pytest.fixture
def order():
    """The row of each image."""
    return np.random.default_rng(5).permutation(IMAGES)


def answers_of(view, images):
    """What is to be stored of them: numpy's plain arrays, one a field."""
    rng = np.random.default_rng(view)
    whole = {name: rng.integers(0, 1000, (IMAGES, *f.shape)).astype(f.dtype) for name, f in FIELDS.items()}
    return {name: values[images] for name, values in whole.items()}


def rows_of(layout, order, some):
    """Rows of some blocks, one after the other."""
    parts = []
    for view, first, last in some:
        part = np.empty(last - first, layout.dtype)
        for name, values in answers_of(view, np.argsort(order)[first:last]).items():
            part[name] = values
        parts.append(part)
    return np.concatenate(parts)


def test_blocks_hold_every_row_once_and_are_of_the_size_meant(layout):
    assert layout.dtype.itemsize == 3 * 2 + 3 * 2 + 4
    assert layout.bytes == IMAGES * VIEWS * 16
    for view in range(VIEWS):
        assert [i for v, *ends in layout.blocks() if v == view for i in range(*ends)] == list(range(IMAGES))
    assert max(last - first for _, first, last in layout.blocks()) <= 4
    assert Layout.from_json(json.loads(json.dumps(asdict(layout)))) == layout


@pytest.mark.parametrize(
    ("images", "views"), [(1_281_167, 1), (1_281_167, 100), (60_000, 1), (100, 2), (1, 1)]
)
def test_what_a_kill_costs_is_bounded_and_ranks_share_evenly(images, views):
    layout = Layout.of(images, views, FIELDS)
    assert layout.rows <= 10_000
    assert len(layout.blocks()) >= min(64, images * views // 256)


def test_any_rows_are_read_back_in_the_order_asked_for_and_in_another_process(written):
    views = [View(1, 9), View(0, 0), View(1, 9), View(0, 4), View(2, 3)]
    here = CacheReader(written, list(FIELDS))
    for read in (here, here, pickle.loads(pickle.dumps(here))):
        cached = read(views)
        for name, field in FIELDS.items():
            expected = np.stack([answers_of(v.view, v.image)[name] for v in views])
            np.testing.assert_array_equal(cached[name].numpy(), expected)
            assert cached[name].numpy().dtype == np.dtype(field.dtype)
    assert list(CacheReader(written, ["rest"])(views)) == ["rest"]


def test_a_view_is_one_npy_file_that_numpy_reads(written, order):
    rows = np.load(written.folder / "view_001.npy", allow_pickle=False)
    for name, expected in answers_of(1, np.arange(IMAGES)).items():
        np.testing.assert_array_equal(rows[name][order], expected)


def test_few_files_are_open_at_a_time(written, monkeypatch):
    monkeypatch.setattr(reader, "OPEN_FILES", 2)
    read = CacheReader(written, ["rest"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for view in range(VIEWS):
            read([View(view, 0)])
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_nothing_half_written_counts(begun, layout, order):
    first, second, *others = layout.blocks()
    rows = rows_of(layout, order, [first, second])
    Writer(begun, [first, second]).write(rows[:-1])
    assert begun.missing() == [second, *others]
    Writer(begun, begun.missing()).write(rows_of(layout, order, [second, *others]))
    assert begun.missing() == []
    for block in layout.blocks():
        begun.check(block)


def test_a_full_disk_is_an_error_with_the_file_and_no_signal(begun, layout, order):
    block = layout.blocks()[0]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # refused as on a full disk
    try:
        with pytest.raises(OSError, match="large") as error:
            Writer(begun, [block]).write(rows_of(layout, order, [block]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(begun.view(0))
    assert begun.missing() == layout.blocks()


def test_damage_is_found_and_mended_by_what_the_line_says(written, layout):
    block = layout.blocks()[1]
    written.check(block)
    path = written.view(block.view)
    content = bytearray(path.read_bytes())
    content[(block.last - IMAGES) * 16 - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"view_000\.npy: rows 4 to 7 are damaged") as error:
        written.check(block)
    record = written.record(block)
    assert f"delete {record} " in str(error.value)
    for other in layout.blocks():
        if other != block:
            written.check(other)
    record.unlink()
    assert written.missing() == [block]


def test_a_file_that_is_cut_off_or_missing_is_told_by_name(written, layout):
    path = written.view(1)
    path.write_bytes(path.read_bytes()[:-20])
    for look in (lambda: CacheReader(written, ["rest"])([View(0, 1), View(1, 1)]), written.make):
        with pytest.raises(UserError, match=r"view_001\.npy is damaged .*: delete it"):
            look()
    path.unlink()
    with pytest.raises(UserError, match=r"view_001\.npy: No such file"):
        CacheReader(written, ["rest"])([View(1, 1)])
    written.make()
    assert written.missing() == [block for block in layout.blocks() if block.view == 1]


def test_an_image_without_an_answer_is_refused_by_name(written, layout, order):
    rows = np.load(written.view(2), mmap_mode="r+")
    rows["log_probs"][order[6]] = np.nan
    rows.flush()
    read = CacheReader(written, ["log_probs", "classes", "rest"])
    read([View(2, 5), View(1, 6)])
    (block,) = [b for b in layout.blocks() if b.view == 2 and b.first <= order[6] < b.last]
    with pytest.raises(UserError, match=f"image 6 .*could not be read.* delete {written.record(block)}"):
        read([View(2, 5), View(2, 6)])
