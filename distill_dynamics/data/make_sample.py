"""Makes the packaged sample of Fashion-MNIST.

    python -m distill_dynamics.data.make_sample --source DIR --out FILE

The same images give the same file, byte for byte (for one liblzma): no time, user or path goes into it.
"""

import argparse
import io
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill_dynamics.data.fashion_mnist import find_files, read_split
from distill_dynamics.data.module import Split
from distill_dynamics.data.probe import draw_probe
from distill_dynamics.errors import UserError

SIZES: dict[Split, int] = {"train": 6400, "val": 1000}
SEED = 0


def sample_arrays(source: Path) -> dict[str, NDArray[np.generic]]:
    """For each split: images uint8 [N,28,28], labels uint8 [N], indices int32 [N] into the official split.

    The training part comes from the official training split, the validation part from the official
    test split; both are drawn class-balanced and kept in the official order.
    """
    folder = find_files(source)
    if folder is None:
        raise UserError(f"--source: Fashion-MNIST's four files are not in {source}")
    arrays: dict[str, NDArray[np.generic]] = {}
    for split, size in SIZES.items():
        images, labels = read_split(folder, split)
        chosen = np.sort(draw_probe(labels, size, SEED))
        arrays[f"{split}_images"] = images[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
        arrays[f"{split}_indices"] = chosen.astype(np.int32)
    return arrays


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Like `numpy.savez_compressed`, but reproducible, and a seventh smaller with LZMA.

    `numpy.load` reads it.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_LZMA
            entry.create_system = 3  # else it would tell Windows from the rest
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content.getvalue())


def main() -> None:
    """Writes the file and prints what its README states."""
    parser = argparse.ArgumentParser(description="Make the packaged sample of Fashion-MNIST.")
    parser.add_argument(
        "--source", type=Path, required=True, help="folder with the four IDX files, gzipped or not"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    arguments = parser.parse_args()
    write_npz(arguments.out, sample_arrays(arguments.source))
    content = arguments.out.read_bytes()
    print(f"{arguments.out}: {len(content):,} bytes, sha256 {sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
