import pickle

import numpy as np
import pytest

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError
from distill_dynamics.teacher_cache import shards
from distill_dynamics.teacher_cache.shards import (
    Answers,
    Field,
    Layout,
    check_shard,
    missing,
    shard_folder,
    write_shard,
)

FIELDS = {"log_probs": Field((3,), "float16"), "classes": Field((3,), "uint16"), "rest": Field((), "float32")}


@pytest.fixture
def layout(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 64)  # rows of 16 bytes
    return Layout.of(images=10, views=2, fields=FIELDS)


def rows_of(layout, shard, seed=0):
    rng = np.random.default_rng((seed, shard.view))
    whole = {
        name: rng.integers(0, 1000, (layout.images, *field.shape)).astype(field.dtype)
        for name, field in layout.fields.items()
    }
    return {name: rows[shard.first : shard.last] for name, rows in whole.items()}


def written(folder, layout):
    for shard in layout.shards():
        write_shard(folder, layout, shard, rows_of(layout, shard))


def test_shards_are_of_the_size_meant_and_hold_every_row_once(layout):
    assert layout.row_bytes == 3 * 2 + 3 * 2 + 4
    assert layout.bytes == 10 * 2 * 16
    for view in range(2):
        rows = [i for s in layout.shards() if s.view == view for i in range(s.first, s.last)]
        assert rows == list(range(10))
    assert max(s.last - s.first for s in layout.shards()) * layout.row_bytes <= 64
    assert Layout.from_json(layout.to_json()) == layout


def test_any_rows_are_read_back_in_the_order_asked_for_and_in_another_process(tmp_path, layout):
    written(tmp_path, layout)
    views = [View(1, 9), View(0, 0), View(1, 9), View(0, 4), View(1, 3)]
    answers = Answers(tmp_path, layout)
    for reader in (answers, answers, pickle.loads(pickle.dumps(answers))):
        found = reader(views)
        for name, field in FIELDS.items():
            whole = [rows_of(layout, shards.Shard(view, 0, 10))[name] for view in range(2)]
            expected = np.stack([whole[v.view][v.image] for v in views])
            np.testing.assert_array_equal(found[name].numpy(), expected)
            assert found[name].numpy().dtype == np.dtype(field.dtype)


def test_nothing_half_written_counts(tmp_path, layout):
    first, second, *others = layout.shards()
    write_shard(tmp_path, layout, first, rows_of(layout, first))
    half = shard_folder(tmp_path, layout, second)
    half.with_name(half.name + ".partial").mkdir()
    assert missing(tmp_path, layout) == [second, *others]
    write_shard(tmp_path, layout, second, rows_of(layout, second))
    assert missing(tmp_path, layout) == others
    assert not list(tmp_path.rglob("*.partial"))


def test_damage_is_found(tmp_path, layout):
    written(tmp_path, layout)
    shard = layout.shards()[1]
    check_shard(tmp_path, layout, shard)
    path = shard_folder(tmp_path, layout, shard) / "log_probs.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"log_probs\.npy is damaged"):
        check_shard(tmp_path, layout, shard)
    path.unlink()
    with pytest.raises(UserError, match="is damaged"):
        check_shard(tmp_path, layout, shard)
