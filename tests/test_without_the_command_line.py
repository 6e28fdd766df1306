"""A training in Python needs neither W&B, nor the command line's parser, nor a run's lease (filelock's)."""

import os
import subprocess
import sys

from conftest import ROOT

FIT = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, *args):
        absent = ("wandb", "jsonargparse", "docstring_parser", "torchdistill")
        if name.split(".")[0] in absent or name == "distill_dynamics.runs.lease":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

from pathlib import Path
from lightning.pytorch import Trainer
from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.callbacks import EMA, DynamicsProbe, GradientConflict
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.losses import SpectralKD
from distill_dynamics.train.checkpoints import checkpoint_callbacks
from distill_dynamics.train.run_logger import RunLogger

run = Path(sys.argv[1])
vit = {"img_size": 28, "patch_size": 14, "in_chans": 1, "num_classes": 10, "num_heads": 2}
student = Backbone("deit_tiny_patch16_224", timm_kwargs={**vit, "embed_dim": 16, "depth": 2})
teacher = Backbone("cait_xxs24_224", timm_kwargs={**vit, "embed_dim": 24, "depth": 3})
distiller = Distiller(student, teacher, {"spectral": Term(SpectralKD, weight=0.2, last=1)})
trainer = Trainer(
    max_epochs=1, limit_train_batches=2, limit_val_batches=1, accelerator="cpu", devices=1,
    callbacks=[DynamicsProbe(1, 8), EMA(0.9), GradientConflict(), *checkpoint_callbacks(run, 1)],
    logger=[RunLogger(run)], default_root_dir=run, enable_progress_bar=False, enable_model_summary=False,
    num_sanity_val_steps=0,
)
trainer.fit(distiller, datamodule=FashionMNISTSample(batch_size=8, eval_batch_size=100))
"""


def test_a_fit_with_probes_ends_with_its_files(tmp_path):
    command = [sys.executable, "-c", FIT, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    stems = ("teacher", "student_epoch_0000", "student_epoch_0001", "student_best")
    assert {f"dynamics/{stem}.npz" for stem in stems} < written
    assert {"metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} < written
