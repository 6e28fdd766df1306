"""Makes the packaged teacher from a run of configs/fashion_mnist/teacher.yaml.

    python tests/scripts/make_teacher.py runs/teacher-1

Takes the best checkpoint's student, stores it in float16, and measures what is stored: accuracy on
Fashion-MNIST's test split and the Profile on the 32 probe images.
"""

import argparse
from pathlib import Path

import torch
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

import distill_dynamics
from distill_dynamics import Backbone
from distill_dynamics.data import FashionMNIST
from distill_dynamics.dynamics import profile_model

NAME = "cait_fashion_mnist"


def make(run_dir: Path, folder: Path, data_dir: str) -> None:
    """Write NAME.safetensors (accuracy in its metadata) and NAME.npz (the Profile) into `folder`."""
    best = run_dir / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, map_location="cpu", weights_only=True)
    name, epoch = checkpoint["distill_dynamics"]["student"]["timm_name"], checkpoint["epoch"] + 1
    weights = folder / f"{NAME}.safetensors"
    Backbone(name, checkpoint=best).export(weights, dtype=torch.float16)

    stored = Backbone(name, checkpoint=weights).eval()
    data = FashionMNIST(data_dir=data_dir, mean=stored.mean, std=stored.std, eval_batch_size=500)
    data.setup("validate")
    accuracy = MulticlassAccuracy(data.num_classes, average="micro")
    with torch.no_grad():
        for images, targets in tqdm(data.val_dataloader(), desc="Accuracy of the stored weights"):
            accuracy.update(stored(images).logits, targets)
    top1 = round(100 * accuracy.compute().item(), 2)
    stored.export(
        weights, dtype=torch.float16, notes={"data": "Fashion-MNIST", "epoch": epoch, "test_acc1": top1}
    )

    probe = data.probe_set(32)
    profile = profile_model(
        stored,
        probe.normalised(stored.mean, stored.std),
        epoch=epoch,
        probe_id=probe.probe_id,
        probe_indices=probe.indices,
    )
    profile.save(folder / f"{NAME}.npz")
    print(f"{weights}: {weights.stat().st_size / 1e6:.2f} MB, epoch {epoch}, top-1 {top1} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("--out", type=Path, default=Path(distill_dynamics.__file__).parent / "weights")
    parser.add_argument("--data_dir", default="data")
    arguments = parser.parse_args()
    make(arguments.run, arguments.out, arguments.data_dir)
