import json
import os
import pickle
import resource

import numpy as np
import pytest

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError
from distill_dynamics.teacher_cache import blocks
from distill_dynamics.teacher_cache.blocks import (
    Answers,
    Block,
    Field,
    Layout,
    Writer,
    check_block,
    make_files,
    missing,
    record_of,
    view_file,
)

FIELDS = {"log_probs": Field((3,), "float16"), "classes": Field((3,), "uint16"), "rest": Field((), "float32")}
IMAGES, VIEWS = 10, 3


@pytest.fixture
def layout(monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_ROWS", 4)
    return Layout.of(IMAGES, VIEWS, FIELDS)


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
        part = np.empty(last - first, layout.row)
        for name, values in answers_of(view, np.argsort(order)[first:last]).items():
            part[name] = values
        parts.append(part)
    return np.concatenate(parts)


def begun(folder, layout, order):
    np.save(folder / "rows.npy", order)
    make_files(folder, layout)


def written(folder, layout, order):
    begun(folder, layout, order)
    every = layout.blocks()
    rows = rows_of(layout, order, every)
    writer = Writer(folder, layout, every)
    for part in np.array_split(rows, 7):  # batches end where they like
        writer.write(part)


def test_blocks_hold_every_row_once_and_are_of_the_size_meant(layout):
    assert layout.row.itemsize == 3 * 2 + 3 * 2 + 4
    assert layout.bytes == IMAGES * VIEWS * 16
    for view in range(VIEWS):
        assert [i for v, *ends in layout.blocks() if v == view for i in range(*ends)] == list(range(IMAGES))
    assert max(last - first for _, first, last in layout.blocks()) <= 4
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize(
    ("images", "views"), [(1_281_167, 1), (1_281_167, 100), (60_000, 1), (100, 2), (1, 1)]
)
def test_what_a_kill_costs_is_bounded_and_ranks_share_evenly(images, views):
    layout = Layout.of(images, views, FIELDS)
    assert layout.rows <= 10_000
    assert len(layout.blocks()) >= min(64, images * views // 256)


def test_any_rows_are_read_back_in_the_order_asked_for_and_in_another_process(tmp_path, layout, order):
    written(tmp_path, layout, order)
    views = [View(1, 9), View(0, 0), View(1, 9), View(0, 4), View(2, 3)]
    answers = Answers(tmp_path, layout, list(FIELDS))
    for reader in (answers, answers, pickle.loads(pickle.dumps(answers))):
        found = reader(views)
        for name, field in FIELDS.items():
            expected = np.stack([answers_of(v.view, v.image)[name] for v in views])
            np.testing.assert_array_equal(found[name].numpy(), expected)
            assert found[name].numpy().dtype == np.dtype(field.dtype)
    assert list(Answers(tmp_path, layout, ["rest"])(views)) == ["rest"]


def test_a_view_is_one_npy_file_that_numpy_reads(tmp_path, layout, order):
    written(tmp_path, layout, order)
    rows = np.load(tmp_path / "view_001.npy", allow_pickle=False)
    for name, expected in answers_of(1, np.arange(IMAGES)).items():
        np.testing.assert_array_equal(rows[name][order], expected)


def test_few_files_are_open_at_a_time(tmp_path, layout, order, monkeypatch):
    written(tmp_path, layout, order)
    monkeypatch.setattr(blocks, "MAPPED", 2)
    answers = Answers(tmp_path, layout, ["rest"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for view in range(VIEWS):
            answers([View(view, 0)])
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_nothing_half_written_counts(tmp_path, layout, order):
    begun(tmp_path, layout, order)
    first, second, *others = layout.blocks()
    rows = rows_of(layout, order, [first, second])
    Writer(tmp_path, layout, [first, second]).write(rows[:-1])
    assert missing(tmp_path, layout) == [second, *others]
    again = Writer(tmp_path, layout, missing(tmp_path, layout))
    again.write(rows_of(layout, order, [second, *others]))
    assert missing(tmp_path, layout) == []
    for block in layout.blocks():
        check_block(tmp_path, layout, block)


def test_a_full_disk_is_an_error_with_the_file_and_no_signal(tmp_path, layout, order):
    begun(tmp_path, layout, order)
    block = layout.blocks()[0]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # refused as on a full disk
    try:
        with pytest.raises(OSError, match="large") as error:
            Writer(tmp_path, layout, [block]).write(rows_of(layout, order, [block]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(view_file(tmp_path, 0))
    assert missing(tmp_path, layout) == layout.blocks()


def test_damage_is_found_and_mended_by_what_the_line_says(tmp_path, layout, order):
    written(tmp_path, layout, order)
    block = layout.blocks()[1]
    check_block(tmp_path, layout, block)
    path = view_file(tmp_path, block.view)
    content = bytearray(path.read_bytes())
    content[(block.last - IMAGES) * 16 - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"view_000\.npy: rows 4 to 7 are damaged") as error:
        check_block(tmp_path, layout, block)
    record = record_of(tmp_path, layout, block)
    assert f"delete {record} " in str(error.value)
    for other in layout.blocks():
        if other != block:
            check_block(tmp_path, layout, other)
    record.unlink()
    assert missing(tmp_path, layout) == [block]


def test_a_file_that_is_cut_off_or_missing_is_told_by_name(tmp_path, layout, order):
    written(tmp_path, layout, order)
    path = view_file(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-20])
    for look in (
        lambda: Answers(tmp_path, layout, ["rest"])([View(0, 1), View(1, 1)]),
        lambda: make_files(tmp_path, layout),
    ):
        with pytest.raises(UserError, match=r"view_001\.npy is damaged .*: delete it"):
            look()
    path.unlink()
    with pytest.raises(UserError, match=r"view_001\.npy: No such file"):
        Answers(tmp_path, layout, ["rest"])([View(1, 1)])
    make_files(tmp_path, layout)
    assert missing(tmp_path, layout) == [block for block in layout.blocks() if block.view == 1]


def test_an_image_without_an_answer_is_refused_by_name(tmp_path, layout, order):
    written(tmp_path, layout, order)
    rows = np.load(view_file(tmp_path, 2), mmap_mode="r+")
    rows["log_probs"][order[6]] = np.nan
    rows.flush()
    answers = Answers(tmp_path, layout, ["log_probs", "classes", "rest"])
    answers([View(2, 5), View(1, 6)])
    record = record_of(tmp_path, layout, Block(2, order[6] // layout.rows * layout.rows, 0))
    with pytest.raises(UserError, match=f"image 6 .*could not be read.* delete {record}"):
        answers([View(2, 5), View(2, 6)])
