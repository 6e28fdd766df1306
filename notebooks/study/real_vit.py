"""A real ViT beside the study's small ones: Profiles of a pretrained ViT-S/14 under ranges of the bins.

    python notebooks/study/real_vit.py

The weights are those of real_vit_weights.py. The photographs are those of
results/real_vit/photographs.csv, with their licences, from packages of Debian 12: chosen by eye before
anything was measured, photographs alone, no drawing, no montage, nothing twice. Neither is kept in the
repository: both come to runs/study/real_vit, where a part that is there is not fetched again. The Profiles
come to results/real_vit. It needs pip, apt-get and dpkg-deb, and no rights but a user's.
"""

import csv
import os
import shutil
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from real_vit_weights import MODEL, SIZE, WORK, command, fetch_weights, make, sha256

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.profiler import RangeMode
from distill_dynamics.errors import UserError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "real_vit"


RANGES = {name: name for name in get_args(RangeMode)} | {
    "edge": "-34.6864,10.9536",
    "middle": "-34.9146,10.7254",
}
"""What `analyze` is told, by the name of what is kept.

Two are the global range of these photographs, moved by part of a bin (0.4564): 0 is on an edge, and in the
middle of a bin. Most values of the early blocks are so near 0 that this decides how many bins they fill.
"""


# --- photographs ------------------------------------------------------------------------------------------


def fetch_photographs() -> Path:
    """A folder of exactly those in photographs.csv, each of them checked."""
    with (RESULTS / "photographs.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    folder = WORK / "photographs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for entry in listed:
        package = make(WORK / "packages" / entry["package"], unpack)
        path, _, inside = entry["path"].partition(":")
        try:
            content = (package / path).read_bytes()
            content = of_resources(content, inside) if inside else content
        except (FileNotFoundError, KeyError):
            raise UserError(f"{entry['package']} has no {entry['path']}: {_made_with(entry)}") from None
        if sha256(content) != entry["sha256"]:
            raise UserError(f"{entry['package']}: {entry['path']} is another file: {_made_with(entry)}")
        (folder / entry["file"]).write_bytes(content)
    return folder


def _made_with(entry: Mapping[str, str]) -> str:
    return f"photographs.csv was made with version {entry['version']}, of Debian 12"


def unpack(folder: Path) -> None:
    """Of the Debian package that the folder is named after, its files."""
    package = folder.name.removeprefix(".").removesuffix(".partial")
    print(f"fetching {package}", flush=True)
    advice = " (`apt-get update`, as root, brings the list of packages)"
    command(package, "apt-get", "download", "-qq", package, folder=folder, advice=advice)
    (archive,) = folder.glob("*.deb")
    command(package, "dpkg-deb", "-x", archive, folder)
    archive.unlink()


def of_resources(content: bytes, path: str) -> bytes:
    """A file of Qt's compiled resources (.rcc, big-endian), one that is stored as it is; KeyError without it.

    The format is that of Qt's qresource.cpp: a tree of entries, in folders sorted by a hash; names; data.
    """
    version, tree, data, names = struct.unpack_from(">4x4i", content)
    size = 14 if version < 2 else 22

    def name(entry: int) -> str:
        start = names + struct.unpack_from(">I", content, entry)[0]
        length = struct.unpack_from(">H", content, start)[0]
        return content[start + 6 : start + 6 + 2 * length].decode("utf-16-be")

    at = tree
    for part in path.split("/"):
        count, first = struct.unpack_from(">2I", content, at + 6)
        entries = range(tree + size * first, tree + size * (first + count), size)
        at = {name(entry): entry for entry in entries}[part]
    start = data + struct.unpack_from(">I", content, at + 10)[0]
    length = struct.unpack_from(">I", content, start)[0]
    return content[start + 4 : start + 4 + length]


# --- Profiles ---------------------------------------------------------------------------------------------


def measure(weights: Path, photographs: Path) -> None:
    """All photographs under each range, by the project's own command, with DINOv2's own preprocessing."""
    out, count = WORK / "analysis", len(list(photographs.iterdir()))
    shutil.rmtree(out, ignore_errors=True)
    print(f"measuring {count} photographs", flush=True)
    words: list[object] = [sys.executable, "-m", "distill_dynamics", "analyze", "--out", out]
    words += ["--model", MODEL, "--checkpoint", weights, "--timm-kwargs", f"{{img_size: {SIZE}}}"]
    words += ["--images", photographs, "--n-images", "all", "--value-range", *RANGES.values()]
    command("analyze", *words)
    folders = {name: out / "profiles" / MODEL / told for name, told in RANGES.items()}
    profiles = {name: Profile.load(folder / "model.npz") for name, folder in folders.items()}
    for name, profile in profiles.items():
        if len(profile.entropy_images) != count:
            raise UserError(f"analyze has measured {len(profile.entropy_images)} of {count} photographs")
        change, kept = "new", RESULTS / f"{name}.npz"
        if kept.exists():
            moved = abs(profile.entropy - Profile.load(kept).entropy).max()
            change = f"at most {moved:.1g} bits from what was kept"
        profile.save(kept)
        print(f"{name}: {change}", flush=True)


def main() -> None:
    """Weights, photographs, Profiles."""
    os.chdir(ROOT)
    measure(fetch_weights(), fetch_photographs())


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
