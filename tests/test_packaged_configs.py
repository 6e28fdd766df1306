"""`--config packaged:NAME`: in a checkout, in every command that takes a config."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, refused

from distill_dynamics.cli.main import main
from distill_dynamics.cli.packaged import with_packaged

FILES = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
SHIPPED = {path for path in FILES if not path.startswith("sweeps/")}  # those are `wandb sweep`'s


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_shipped_config_has_a_name():
    for path in SHIPPED:
        name = path.removesuffix(".yaml")
        for words in (["--config", f"packaged:{name}"], [f"--config=packaged:{name}"]):
            found = with_packaged(["fit", *words])[-1].rpartition("=")[2]
            assert Path(found).samefile(ROOT / "configs" / path)


@pytest.mark.parametrize("given", ["packaged:", "packaged:quikstart", "packaged:imagenet", "packaged:../x"])
def test_a_name_that_there_is_not_lists_those_that_there_are(capsys, given):
    line = refused(capsys, "fit", "--config", given)
    assert line.startswith(f"error: --config {given}: ")
    assert line.count("\n") == 1
    for path in SHIPPED:
        folder, _, name = path.removesuffix(".yaml").rpartition("/")
        inside = line.partition(f"{folder}/{{")[2].partition("}")[0] if folder else line
        assert name in inside
    assert ("did you mean 'quickstart'" in line) == (given == "packaged:quikstart")


def test_a_packaged_teacher_is_no_config():
    words = ["fit", "--model.teacher.checkpoint", "packaged:cait_fashion_mnist", "--name", "packaged:x"]
    assert with_packaged(words) == words


def test_two_of_them_are_one_experiment_named_after_the_last(tmp_path, no_report):
    tiny = "--trainer.max_epochs 1 --trainer.limit_train_batches 0.02 --trainer.limit_val_batches 0.5"
    tiny += " --trainer.accelerator cpu --probe.every_n_epochs 0 --wandb.mode disabled"
    main(["fit", "--config", "packaged:quickstart", "-c=packaged:methods/gram", *tiny.split()])
    model = yaml.safe_load(Path("runs/gram-1/config.yaml").read_text())["model"]
    assert model["teacher"]["init_args"]["checkpoint"] == "packaged:cait_fashion_mnist"
    assert "gram" in model["terms"]
    main(["validate", "--config", "runs/gram-1/config.yaml", "--ckpt_path", "best"])


def test_other_commands_take_them(capsys):
    line = refused(capsys, "cache-teacher", "--config", "packaged:quikstart", "--out", "x")
    assert "packaged:quikstart: no such config" in line
    line = refused(capsys, "analyze", "--model", "x", "--data", "packaged:quikstart", "--out", "x")
    assert "--data packaged:quikstart: no such config" in line
    line = refused(capsys, "analyze", "--model", "deit_x", "--data", "packaged:quickstart", "--out", "x")
    assert "timm has no model 'deit_x'" in line


def test_where_the_paths_in_one_begin_is_said(capsys, tmp_path):
    config = ["--config", "packaged:fashion_mnist/base", "--config", "packaged:fashion_mnist/softkd"]
    line = refused(capsys, "fit", *config)
    assert f"notebooks/study/teachers/cait24.safetensors (in {tmp_path}, where the command is run)" in line
