"""The study's real ViT: its photographs are those of the list, and all of them are measured."""

import csv
import hashlib
import importlib
import struct
import sys

import pytest
from conftest import ROOT
from report.made import profile

from distill_dynamics.errors import UserError


@pytest.fixture
def real_vit(monkeypatch, tmp_path):
    """real_vit.py, working and keeping in a folder of its own."""
    monkeypatch.syspath_prepend(ROOT / "notebooks" / "study")
    module = importlib.import_module("real_vit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "kept")
    return module


def resources(files, version):
    """Qt's compiled resources, written from the layout of its rcc tool: folders after their parents."""
    folders = {"": []}
    for path in files:
        parts = path.split("/")
        for i in range(len(parts)):
            parent, child = "/".join(parts[:i]), "/".join(parts[: i + 1])
            folders.setdefault(parent, [])
            if child not in folders[parent]:
                folders[parent].append(child)
    order = [""]
    for path in order:
        order += folders.get(path, [])
    names, data, tree = b"", b"", b""
    header = 20 if version < 3 else 24
    for path in order:
        word = path.rpartition("/")[2].encode("utf-16-be")
        at, names = len(names), names + struct.pack(">HI", len(word) // 2, 0) + word
        if path in folders:
            first = order.index(folders[path][0])
            tree += struct.pack(">IHII", at, 2, len(folders[path]), first)
        else:
            tree += struct.pack(">IHHHI", at, 0, 0, 1, len(data))
            data += struct.pack(">I", len(files[path])) + files[path]
        tree += b"\0" * 8 * (version > 1)
    places = (version, header + len(data) + len(names), header, header + len(data))
    return b"qres" + struct.pack(">4i", *places) + b"\0" * (header - 20) + data + names + tree


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_is_found_in_qts_resources(real_vit, version):
    files = {"a/b/one.webp": b"first", "a/two.webp": b"second", "a/b/three.webp": b"", "c.webp": b"4"}
    packed = resources(files, version)
    assert {path: real_vit.of_resources(packed, path) for path in files} == files
    for absent in ("a/b/two.webp", "d"):
        with pytest.raises(KeyError):
            real_vit.of_resources(packed, absent)


@pytest.fixture
def packages(real_vit, monkeypatch):
    """Two packages that are there, and their list; nothing can be fetched."""
    contents = {"usr/a.jpg": b"a", "usr/b.rcc:inner/b.webp": b"b", "usr/c.png": b"c"}
    entries = []
    for path, content in contents.items():
        package = "two" if path == "usr/c.png" else "one"
        outer, _, inside = path.partition(":")
        file = real_vit.WORK / "packages" / package / outer
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(resources({inside: content}, 2) if inside else content)
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{package}_{path.rpartition('/')[2]}"
        entries.append({"file": name, "package": package, "version": "1-2", "path": path, "sha256": sha256})
    real_vit.RESULTS.mkdir()
    with (real_vit.RESULTS / "photographs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(entries[0]))
        writer.writeheader()
        writer.writerows(entries)

    def command(what, *words, **_):
        raise UserError(f"{what}: no network")

    monkeypatch.setattr(real_vit, "command", command)
    return real_vit.WORK / "packages"


def test_the_folder_has_the_listed_photographs_and_no_other(real_vit, packages):
    stray = real_vit.WORK / "photographs" / "stray.jpg"  # of an earlier list
    stray.parent.mkdir()
    stray.touch()
    folder = real_vit.fetch_photographs()
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {"one_a.jpg": b"a", "one_b.webp": b"b", "two_c.png": b"c"}


def test_a_photograph_that_is_another_or_gone_is_one_line(real_vit, packages):
    (packages / "two" / "usr" / "c.png").write_bytes(b"C")
    with pytest.raises(UserError, match=r"^two: usr/c\.png is another file: .* version 1-2, of Debian 12$"):
        real_vit.fetch_photographs()
    (packages / "one" / "usr" / "b.rcc").write_bytes(resources({"inner/x.webp": b"b"}, 2))
    with pytest.raises(UserError, match=r"^one has no usr/b\.rcc:inner/b\.webp: .* version 1-2"):
        real_vit.fetch_photographs()
    (packages / "one" / "usr" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"^one has no usr/a\.jpg: "):
        real_vit.fetch_photographs()


def test_what_was_interrupted_is_fetched_anew_and_what_is_there_is_not(real_vit, packages):
    (packages / "two").rename(packages / ".two.partial")
    with pytest.raises(UserError, match="two: no network"):
        real_vit.fetch_photographs()
    assert not (packages / "two").exists()
    whole = real_vit.make(packages / "two", lambda folder: (folder / "new").touch())
    assert [path.name for path in whole.iterdir()] == ["new"]
    assert real_vit.make(whole, lambda folder: pytest.fail("made twice")) == whole


def test_a_command_that_fails_is_one_line(real_vit):
    script = "import sys; print('much'); sys.exit('no such package\\n')"
    with pytest.raises(UserError) as told:
        real_vit.command("lists", sys.executable, "-c", script, advice=" (update)")
    assert str(told.value) == "lists: no such package (update)"
    with pytest.raises(UserError, match="lists: there is no apt-git here"):
        real_vit.command("lists", "apt-git")


@pytest.mark.parametrize("measured", [5, 4])
def test_profiles_are_kept_where_all_photographs_were_measured(real_vit, monkeypatch, capsys, measured):
    folder = real_vit.WORK / "photographs"
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"{i}.jpg").touch()
    kept = real_vit.RESULTS
    profile(None, [1.0, 2, 3], 5, range_mode="layer").save(kept / "layer.npz")
    before = (kept / "layer.npz").read_bytes()

    def command(what, *words, **_):
        out = words[words.index("--out") + 1]
        assert words[words.index("--n-images") + 1] == "all"
        for name in words[words.index("--value-range") + 1 :]:
            mode = "explicit" if "," in name else name
            made = profile(None, [1.0, 2, 3.5], measured, range_mode=mode)
            made.save(out / "profiles" / real_vit.MODEL / name / "model.npz")

    monkeypatch.setattr(real_vit, "command", command)
    if measured < 5:
        with pytest.raises(UserError, match="4 of 5 photographs"):
            real_vit.measure(real_vit.WORK / "weights.safetensors", folder)
        assert [path.name for path in kept.iterdir()] == ["layer.npz"]
        assert (kept / "layer.npz").read_bytes() == before
    else:
        real_vit.measure(real_vit.WORK / "weights.safetensors", folder)
        assert {path.stem for path in kept.iterdir()} == {"global", "layer", "scaled", "edge", "middle"}
        assert "layer: at most 0.5 bits from what was kept" in capsys.readouterr().out
