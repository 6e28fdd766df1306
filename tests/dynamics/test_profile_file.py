import dataclasses
import json
import time

import numpy as np
import pytest
import scipy.stats
from profiles import profile_of

from distill_dynamics.dynamics import Profile
from distill_dynamics.errors import UserError


def make_profile(images=4, channels=(3, 8, 5), **changes):
    rng = np.random.default_rng(0)
    layers = len(channels)
    fields = {
        "model": "réseau_18",
        "epoch": 30,
        "layers": [f"blocks.{i}" for i in range(layers)],
        "entropy": rng.random(layers),
        "magnitude": rng.random(layers),
        "spectrum": [rng.random(c) for c in channels],
        "entropy_images": rng.random((images, layers)),
        "magnitude_images": rng.random((images, layers)),
        "peak_images": rng.random((images, layers)),
        "median_images": rng.random((images, layers)),
        "peak_channel": rng.integers(3, size=layers),
        "spectrum_se": [rng.random(c) for c in channels],
        "value_range": np.sort(rng.standard_normal((layers, 2)), axis=1),
        "range_mode": "layer",
        "clipped": np.zeros(layers),
        "bins": 64,
        "probe_id": "1a2b",
        "probe_indices": np.arange(images) * 7,
    }
    return profile_of(**{**fields, **changes})


def assert_same(one, other):
    for field in dataclasses.fields(Profile):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[x], b[x], equal_nan=True) for x in a), field.name
        elif field.name.startswith("spectrum"):
            assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))
        elif isinstance(a, np.ndarray):
            assert np.array_equal(a, b, equal_nan=True), field.name
            assert a.dtype == b.dtype
        else:
            assert (a, type(a)) == (b, type(b)), field.name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epoch": None, "probe_indices": None},
        {"epoch": np.int64(0), "bins": np.int32(7), "student_width": np.int64(192)},
        {"entropy": [1, 2, np.nan]},
        {"images": 0, "channels": (0, 0), "peak_channel": [-1, -1]},
        {"layers": ["a", "b", "c"], "blocks": [2, 7, 12]},
        {"effective_rank": [1.0, 2.0, 3.0], "errors": {"effective_rank": [0.1, 0.2, np.nan]}},
        {"of_a_later_version_images": np.ones((4, 3))},
    ],
)
def test_what_is_loaded_is_what_was_saved(tmp_path, changes):
    profile = make_profile(**changes)
    profile.save(tmp_path / "new" / "folder" / "student_epoch_0030.npz")
    assert_same(Profile.load(str(tmp_path / "new" / "folder" / "student_epoch_0030.npz")), profile)
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["student_epoch_0030.npz"]


def test_plain_numpy_reads_the_file(tmp_path):
    profile = make_profile()
    profile.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["entropy_images"], profile.entropy_images)
        assert np.array_equal(archive["spectrum_1"], profile.spectrum[1])
        assert json.loads(str(archive["meta"]))["layers"] == profile.layers


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [(["blocks.0", "blocks.5", "blocks.11"], [1, 6, 12]), (["stem", "a.1", "a.2"], [1, 2, 3])],
)
def test_block_numbers_of_a_file_without_them(tmp_path, layers, blocks):
    make_profile(layers=layers).save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as archive:
        np.savez(tmp_path / "old.npz", **{name: archive[name] for name in archive if name != "blocks"})
    assert Profile.load(tmp_path / "old.npz").blocks.tolist() == blocks


def test_a_file_of_schema_2(tmp_path):
    """What versions before 0.2 wrote: four curves with values of each image, the peak's channel by layer."""
    rng = np.random.default_rng(3)
    values = {f"{name}_images": rng.random((4, 3)) for name in ("entropy", "magnitude", "peak", "median")}
    spectra = {f"spectrum{kind}_{i}": rng.random(c) for kind in ("", "_se") for i, c in enumerate((3, 8, 5))}
    meta = {
        "kind": "distill_dynamics.Profile", "model": "m", "epoch": 3, "layers": ["a", "b", "c"],
        "range_mode": "global", "bins": 100, "probe_id": "p", "schema": 2,
    }  # fmt: skip
    others = {
        "entropy": rng.random(3), "magnitude": rng.random(3), "peak_channel": np.array([2, 0, 7]),
        "value_range": np.tile([-1.0, 1.0], (3, 1)), "clipped": np.zeros(3), "blocks": np.array([2, 4, 6]),
    }  # fmt: skip
    np.savez(tmp_path / "old.npz", meta=np.array(json.dumps(meta)), **values, **spectra, **others)
    loaded = Profile.load(tmp_path / "old.npz")
    for name in ("entropy", "magnitude"):
        np.testing.assert_array_equal(loaded.curve(name), others[name])
        np.testing.assert_allclose(loaded.curve_se(name), scipy.stats.sem(values[f"{name}_images"]))
    for name in ("entropy", "magnitude", "peak", "median"):
        np.testing.assert_array_equal(loaded.curves[name], values[f"{name}_images"])
    assert loaded.peak_channel.tolist() == [2, 0, 7]
    assert not loaded.known("effective_rank")
    assert np.isnan(loaded.curve("effective_rank")).all()
    np.testing.assert_array_equal(loaded.spectrum[1], spectra["spectrum_1"])
    loaded.save(tmp_path / "new.npz")
    assert_same(Profile.load(tmp_path / "new.npz"), loaded)
    np.savez(
        tmp_path / "old.npz",
        meta=np.array(json.dumps(meta)), **values, **spectra, **{**others, "peak_channel": np.zeros(9)},
    )  # fmt: skip
    assert_refused(tmp_path / "old.npz", "peak_channel")


@pytest.mark.parametrize(
    "curves",
    [
        None,
        ["entropy", "magnitude"],
        {"entropy": "images"},
        {"entropy": "images", "magnitude": "set"},
        {"entropy": "images", "magnitude": "images", "spectrum_0": "set"},
        {"entropy": "images", "magnitude": "images", "value_range": "set"},
        {"entropy": "images", "magnitude": "images", "peak": "set"},
        {"entropy": "images", "magnitude": "images", "absent": "images"},
        {"entropy": "images", "magnitude": "images", "../x": "images"},
        {"entropy": "images", "magnitude": "images", "peak": ["images"]},
        {"entropy": "images", "magnitude": "images"} | {f"c{n}": "images" for n in range(500)},
    ],
)
def test_curves_that_a_file_cannot_have(tmp_path, curves):
    make_profile().save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays.pop("meta"))) | {"curves": curves}
    np.savez(tmp_path / "p.npz", meta=np.array(json.dumps(meta)), **arrays)
    assert_refused(tmp_path / "p.npz")


@pytest.mark.parametrize(
    "pairs",
    [
        None,
        {"cka": 1},
        ["absent"],
        ["../x"],
        [["cka"]],
        ["entropy"],
        ["thin"],
        ["wide"],
        ["huge"],
        ["cka"] * 500,
    ],
)
def test_pairs_that_a_file_cannot_have(tmp_path, pairs):
    profile = make_profile()
    profile.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as archive:
        arrays = dict(archive)
    layers = len(profile.layers)
    made = {"thin": np.ones(layers), "wide": np.ones((layers, 5000)), "huge": np.full((layers, 2), 1e300)}
    made |= {"cka": np.ones((layers, 2)), "entropy": np.ones((layers, 2))}
    meta = json.loads(str(arrays.pop("meta"))) | {"pairs": pairs}
    tables = {f"{name}_pairs": table for name, table in made.items()}
    np.savez(tmp_path / "p.npz", meta=np.array(json.dumps(meta)), **arrays, **tables)
    assert_refused(tmp_path / "p.npz")


def test_equal_profiles_give_equal_bytes(tmp_path, monkeypatch):
    make_profile().save(tmp_path / "now")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    make_profile().save(tmp_path / "later")
    assert (tmp_path / "now").read_bytes() == (tmp_path / "later").read_bytes()


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    make_profile(epoch=1).save(tmp_path / "p.npz")

    def full_disk(file, **arrays):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_profile(epoch=2).save(tmp_path / "p.npz")
    assert Profile.load(tmp_path / "p.npz").epoch == 1
    assert [file.name for file in tmp_path.iterdir()] == ["p.npz"]


def assert_refused(path, *words):
    with pytest.raises(UserError) as refusal:
        Profile.load(path)
    message = str(refusal.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_a_missing_file(tmp_path):
    assert_refused(tmp_path / "p.npz", "no such")
    assert_refused(tmp_path)


def test_a_file_that_is_no_profile(tmp_path):
    (tmp_path / "text").write_text("epoch,loss\n1,2\n")
    (tmp_path / "empty").write_bytes(b"")
    with (tmp_path / "array").open("wb") as file:
        np.save(file, np.ones(3))
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    np.savez(tmp_path / "other_meta.npz", meta=np.array(json.dumps({"schema": 1})))
    np.savez(tmp_path / "pickled.npz", meta=np.array({"schema": 1}, dtype=object))
    for name in ("text", "empty", "array", "other.npz", "other_meta.npz", "pickled.npz"):
        assert_refused(tmp_path / name, "not a")


def test_a_file_cut_short_anywhere(tmp_path):
    make_profile().save(tmp_path / "p.npz")
    whole = (tmp_path / "p.npz").read_bytes()
    for length in np.linspace(0, len(whole) - 1, 40, dtype=int):
        (tmp_path / "p.npz").write_bytes(whole[:length])
        assert_refused(tmp_path / "p.npz")


def test_a_changed_number_is_found_out(tmp_path):
    make_profile().save(tmp_path / "p.npz")
    content = bytearray((tmp_path / "p.npz").read_bytes())
    content[content.find(make_profile().entropy.tobytes())] ^= 1
    (tmp_path / "p.npz").write_bytes(content)
    assert_refused(tmp_path / "p.npz", "CRC")


@pytest.mark.parametrize("schema", [0, 1, 4, "2", True, None])
def test_an_unknown_schema(tmp_path, schema):
    make_profile(schema=schema).save(tmp_path / "p.npz")
    assert_refused(tmp_path / "p.npz", f"schema {schema}", "reads schema 2 and 3")


def test_arrays_that_do_not_fit_each_other(tmp_path):
    make_profile().save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "p.npz", **{**arrays, "entropy": np.ones(9)})
    assert_refused(tmp_path / "p.npz", "entropy", "(9,)")


@pytest.mark.parametrize(
    "changes",
    [
        {"entropy": [1, 2]},
        {"magnitude_images": np.ones((4, 2))},
        {"magnitude_images": np.ones((3, 3))},
        {"peak_images": np.ones((4, 2))},
        {"median_images": np.ones((3, 3))},
        {"peak_channel": [1, 2]},
        {"value_range": [0, 1]},
        {"clipped": 0.0},
        {"spectrum": [np.ones(3)]},
        {"spectrum_se": [np.ones(3)] * 3},
        {"layers": ["a"]},
        {"effective_rank_images": np.ones((3, 3))},
        {"effective_rank": [1.0, 2.0]},
        {"effective_rank": [1.0, 2.0, 3.0], "errors": {"effective_rank": [0.1]}},
        {"errors": {"unheard_of": np.ones(3)}},
        {"clipped_images": np.ones((4, 3))},
        {"probe_indices": [1, 2]},
    ],
)
def test_a_profile_that_contradicts_itself_cannot_be_made(changes):
    with pytest.raises(ValueError, match=r"Profile\."):
        make_profile(**changes)


def test_standard_errors_over_images():
    profile = make_profile(images=9)
    np.testing.assert_allclose(profile.entropy_se, scipy.stats.sem(profile.entropy_images))
    np.testing.assert_allclose(profile.magnitude_se, scipy.stats.sem(profile.magnitude_images))
    assert np.isnan(make_profile(images=1).entropy_se).all()
