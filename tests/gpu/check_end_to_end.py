"""A whole training from image files, with probes: it learns, it leaves its files, its graphs are whole."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from here import Here, Row
from PIL import Image
from trainings import fit

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.callbacks import DynamicsProbe
from distill_dynamics.data import ImageFolder
from distill_dynamics.losses import SpectralKD

CLASSES = 8


def rows(here: Here) -> Iterator[Row]:
    """4,096 JPEG files of 8 classes, colours with noise, and 520 for validation; two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), *((64, 20) if here.small else (4096, 520)))
        yield from _train(here, Path(folder))


def _write(folder: Path, train: int, val: int) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            place = folder / split / f"class_{number % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            colour = 16 + 24 * np.array([number % 2, number // 2 % 2, number // 4 % 2]) * 4
            noise = rng.integers(0, 64, (32, 32, 3)).astype(np.uint8)
            picture = Image.fromarray(noise + colour.astype(np.uint8)).resize((256, 256))
            picture.save(place / f"{number}.jpg", quality=90)


def _train(here: Here, folder: Path) -> Iterator[Row]:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 16, "depth": 2} if here.small else {}
    student, teacher = (
        Backbone(name, timm_kwargs={"num_classes": CLASSES, **small})
        for name in ("deit_tiny_patch16_224", "cait_s24_224")
    )
    # Of a teacher without weights there is little to be learnt: the labels count for half.
    terms = {"spectral": Term(SpectralKD, weight=0.2, last=1)}
    distiller = Distiller(student, teacher, terms, alpha=0.5, compile=here.is_gpu, channels_last=here.is_gpu)
    data = ImageFolder(
        data_dir=str(folder), image_size=32 if here.small else 224, batch_size=16 if here.small else 128,
        num_workers=0 if here.small else 8,
    )  # fmt: skip
    run_dir, probe = folder / "run", DynamicsProbe(1, 8)
    counters = torch._dynamo.utils.counters if here.is_gpu else {}
    losses = fit(here, distiller, data, probe, run_dir=run_dir, max_epochs=2, precision="bf16-mixed")
    tenth = max(1, len(losses) // 10)
    fallen = sum(losses[-tenth:]) / sum(losses[:tenth])
    yield Row("loss at the end ÷ at the beginning", fallen, "", at_most=None if here.small else 0.9)
    wanted = ["metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "dynamics/teacher.npz"]
    wanted += [f"dynamics/student_{stem}.npz" for stem in ("epoch_0000", "epoch_0002", "best")]
    missing = [name for name in wanted if not (run_dir / name).is_file()]
    yield Row(f"files that are missing {missing}", float(len(missing)), "", at_most=0)
    if here.is_gpu:
        breaks = sum(counters["graph_break"].values())
        yield Row("breaks of the compiled graphs", float(breaks), "", at_most=0)
        yield Row("graphs of both models", float(counters["stats"]["unique_graphs"]), "")
