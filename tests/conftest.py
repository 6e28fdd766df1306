import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from distill_dynamics.cli.main import main

os.environ["WANDB_MODE"] = "disabled"  # the tests that look at W&B ask for offline

ROOT = Path(__file__).parent.parent
VIT = {"img_size": 28, "patch_size": 14, "in_chans": 1, "num_classes": 10, "embed_dim": 16, "num_heads": 2}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small models are slower on two threads, and results must not depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed_of_one_test_only(monkeypatch):
    """A fit leaves its seed in the environment, where later DataModules would find it."""
    for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(variable, "0")
        monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """Whoever ignored SIGINT before: Lightning does when a fit was interrupted, a shell does for all that it
    starts in the background.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_report(monkeypatch):
    """Neither `analyze` nor `fit` draws its report, which is most of the time that a tiny one takes."""
    for place in ("analysis.analyze", "cli.fit_summary"):
        monkeypatch.setattr(f"distill_dynamics.{place}.write_report", lambda *args: None)


IMAGE = "distill_dynamics.callbacks.probe_clock._image"


def blank(figure) -> Image.Image:
    """In the place of IMAGE where no test looks at what W&B gets to see: drawing takes most of a probe."""
    return Image.new("RGB", (1, 1))


@pytest.fixture
def blank_pictures(monkeypatch):
    """W&B gets pictures by their names, with nothing in them."""
    monkeypatch.setattr(IMAGE, blank)


def tiny_config(**changes) -> dict:
    """A whole experiment in seconds: CaiT of 3 blocks into DeiT of 2, dropout and augmentation on.

    `changes` are dotted keys with two underscores for each dot.
    """
    config = {
        "seed_everything": 1,
        "model": {
            "student": {
                "name": "deit_tiny_patch16_224",
                "timm_kwargs": {**VIT, "depth": 2, "proj_drop_rate": 0.1, "drop_path_rate": 0.1},
            },
            "teacher": {"name": "cait_xxs24_224", "timm_kwargs": {**VIT, "embed_dim": 24, "depth": 3}},
            "terms": {
                "projector": {
                    "loss": {"class_path": "distill_dynamics.losses.ProjectorKD"},
                    "weight": 0.2,
                    "last": 1,
                }
            },
            "scheduler": {
                "class_path": "distill_dynamics.schedule.WarmupCosine",
                "init_args": {"warmup_epochs": 1, "warmup_lr": 1e-4},
            },
            "lr_images": 16,
        },
        "data": {
            "class_path": "distill_dynamics.data.FashionMNISTSample",
            "init_args": {"batch_size": 16, "eval_batch_size": 100, "crop_padding": 2},
        },
        "trainer": {
            "max_epochs": 2,
            "limit_train_batches": 3,
            "limit_val_batches": 2,
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
        },
        "probe": {"every_n_epochs": 1, "n_images": 8},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = config
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return config


@pytest.fixture
def experiment(tmp_path):
    """Writes a tiny experiment's YAML and gives its path and its runs_dir."""

    def write(name: str = "tiny", **changes) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**tiny_config(**changes), "runs_dir": str(tmp_path / "runs")}))
        return path

    return write


def wandb_record(folder: Path) -> tuple[dict[str, list[dict]], list[dict], dict]:
    """What an offline run's file holds, as W&B's own tool reads it.

    Gives each definition of each metric, the rows of the history, and the summary.
    """
    tool = Path(sys.executable).with_name("wandb")
    command = [tool, "leet", "inspect", "--json", folder]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    defined: dict[str, list[dict]] = {}
    rows, summary = [], {}
    for record in map(json.loads, printed.splitlines()):
        if record["type"] == "metric" and "name" in record["metric"]:
            defined.setdefault(record["metric"]["name"], []).append(record["metric"])
        elif record["type"] == "history":
            rows.append(record["history"]["item"])
        elif record["type"] == "summary":
            summary |= record["summary"].get("update", {})
    return defined, rows, summary


def refused(capsys, command: str, *words: object, status: int = 2) -> str:
    """Runs a command that ends with this status, and gives what it printed on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([command, *map(str, words)])
    assert stop.value.code == status
    return capsys.readouterr().err


def program(*words: object, **environment: str) -> dict:
    """Arguments of `subprocess` for a command in a process of its own, which finds callbacks of the tests."""
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tests" / "cluster")])
    return {
        "args": [sys.executable, "-m", "distill_dynamics", *map(str, words)],
        "cwd": ROOT,
        "env": {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        "text": True,
    }


def fit_once(folder: Path, name: str = "r", options: tuple[str, ...] = (), **changes) -> Path:
    """For fixtures of a module: fits a tiny experiment without a report, and gives its run directory.

    Its config is `folder/tiny.yaml`, its runs_dir `folder`.
    """
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny_config(**changes), "runs_dir": str(folder)}))
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_dynamics.cli.fit_summary.write_report", lambda *args: None)
        for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(variable, "0")
            patch.delenv(variable)
        main(["fit", "--config", str(path), "--name", name, *options])
    return folder / name


def blank_real_vit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where configs name the weights of notebooks/study/real_vit_weights.py, there are some, from here on."""
    monkeypatch.chdir(folder)
    path = folder / "runs" / "study" / "real_vit" / "weights.safetensors"
    path.parent.mkdir(parents=True)
    model = timm.create_model("vit_small_patch14_dinov2", img_size=98)
    save_file(model.state_dict(), path)
