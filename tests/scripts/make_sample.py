"""Makes the packaged sample of Fashion-MNIST.

    python tests/scripts/make_sample.py --source DIR --out FILE

The same images give the same file, byte for byte (for one liblzma): no time, user or path goes into it.
"""

import argparse
import io
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np

from distill_dynamics.data import draw_probe
from distill_dynamics.data.fashion_mnist import read_split

SIZES = {"train": 6400, "val": 1000}


def sample_arrays(source):
    """For each split: images uint8 [N,28,28], labels uint8 [N], indices int32 [N] into the official split.

    Each is a class-balanced draw with seed 0, in the official order.
    """
    arrays = {}
    for split, size in SIZES.items():
        images, labels = read_split(source, split)
        chosen = np.sort(draw_probe(labels, size, seed=0))
        arrays[f"{split}_images"] = images[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
        arrays[f"{split}_indices"] = chosen.astype(np.int32)
    return arrays


def write_npz(path, arrays):
    """Like `numpy.savez_compressed`, but reproducible, and a seventh smaller with LZMA."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_LZMA
            entry.create_system = 3  # Unix: else a file made on Windows would differ
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content.getvalue())


def main():
    parser = argparse.ArgumentParser(description="Make the packaged sample of Fashion-MNIST.")
    parser.add_argument("--source", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    arguments = parser.parse_args()
    write_npz(arguments.out, sample_arrays(arguments.source))
    content = arguments.out.read_bytes()
    print(f"{arguments.out}: {len(content):,} bytes, sha256 {sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
