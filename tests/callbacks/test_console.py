"""What `fit` prints: a line an epoch, bars on a terminal alone, and what the models cost."""

import csv
import json
import re

import pytest
import torch
from conftest import fit_once

from distill_dynamics import Backbone
from distill_dynamics.callbacks.console import duration
from distill_dynamics.cli.main import main
from distill_dynamics.models.cost import cost
from distill_dynamics.report.page import write_report
from distill_dynamics.tables import aligned, cost_rows

LINE = re.compile(
    r"epoch (?P<epoch>\d+)/3  loss (?P<loss>[\d.]+)  val (?P<val>[\d.]+)  best (?P<best>[\d.]+)  "
    r"teacher (?P<teacher>[\d.]+)  rate (?P<rate>[\d.e-]+)  (?P<speed>\d+) images/s  \d+ (s|min) left"
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return fit_once(tmp_path_factory.mktemp("console"), trainer__max_epochs=3, probe__every_n_epochs=0)


def rows(run):
    with (run / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def printed(text):
    return [match.groupdict() for match in map(LINE.fullmatch, text.splitlines()) if match]


def test_a_line_an_epoch_says_what_metrics_csv_has(tmp_path, capsys):
    run = fit_once(tmp_path, trainer__max_epochs=3, probe__every_n_epochs=0)
    output = capsys.readouterr()
    lines, best = printed(output.out), 0.0
    assert len(lines) == 3
    for number, (line, row) in enumerate(zip(lines, rows(run), strict=True), 1):
        best = max(best, float(row["val/acc1"]))
        assert int(line["epoch"]) == number
        for name, value in {
            "loss": row["train/loss"], "val": row["val/acc1"], "rate": row["train/lr"], "best": best,
        }.items():  # fmt: skip
            assert float(line[name]) == pytest.approx(float(value), rel=0.03, abs=0.006)
        assert float(line["speed"]) == pytest.approx(float(row["train/images_per_s"]), abs=0.51)
    assert "\r" not in output.out + output.err
    assert "Epoch 1/3" not in output.out


def test_on_a_terminal_there_are_bars_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    fit_once(tmp_path, trainer__max_epochs=1, probe__every_n_epochs=0, trainer__enable_progress_bar=True)
    output = capsys.readouterr().out
    assert "Epoch 1/1" in output
    assert "epoch 1/1  loss" in output


def test_a_continued_run_knows_its_best(fitted, capsys):
    before = max(float(row["val/acc1"]) for row in rows(fitted))
    more = ["--ckpt_path", "last", "--trainer.max_epochs", "4"]
    main(["fit", "--config", str(fitted / "config.yaml"), *more])
    (line,) = re.findall(r"epoch 4/4 .*", capsys.readouterr().out)
    best = float(re.search(r"best ([\d.]+)", line)[1])
    assert best == pytest.approx(max(before, float(rows(fitted)[-1]["val/acc1"])), abs=0.006)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.2, "0 s"), (59.4, "59 s"), (90, "2 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_time_left_is_short(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("student", "teacher", "line"),
    [
        (14, 7, "the teacher's 4 x 4 patches pooled to 2 x 2"),
        (4, 14, "the student's 7 x 7 patches pooled to 2 x 2"),
    ],
)
def test_it_says_whose_patches_are_pooled(tmp_path, capsys, student, teacher, line):
    sizes = {"student": student, "teacher": teacher}
    changes = {f"model__{who}__timm_kwargs__patch_size": size for who, size in sizes.items()}
    fit_once(
        tmp_path, trainer__max_epochs=1, trainer__limit_train_batches=1, probe__every_n_epochs=0, **changes
    )
    assert f"0.20 x projector: ProjectorKD, student-teacher blocks 2-3, {line}\n" in capsys.readouterr().out


# --- what models cost ---------------------------------------------------------------------------------


def test_operations_are_those_of_a_vit_counted_by_hand():
    width, depth, size, patch, classes = 48, 3, 32, 8, 7
    shape = {"img_size": size, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": 2}
    vit = Backbone("deit_tiny_patch16_224", timm_kwargs={**shape, "num_classes": classes})
    patches = (size // patch) ** 2
    tokens = patches + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # qkv, projection, MLP of 4; scores and sums
    products = patches * width * 3 * patch**2 + depth * block + width * classes
    found = cost(vit, size)
    assert found["gflop"] == pytest.approx(2 * products / 1e9, rel=1e-4)
    assert found["parameters"] == sum(p.numel() for p in vit.parameters())
    assert found["megabytes"] == pytest.approx(4 * found["parameters"] / 1e6, abs=1e-3)
    assert found["ms_32"] > 0 < found["ms_1"]


def test_a_cait_that_is_trained_is_counted_too():
    size = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_classes": 10}
    backbone = Backbone("cait_xxs24_224", timm_kwargs=size)
    backbone.model.pos_embed.requires_grad_(False)
    trained = cost(backbone, 28)
    assert [n for n, p in backbone.named_parameters() if not p.requires_grad] == ["model.pos_embed"]
    assert trained["ms_1"] > 0
    assert trained["gflop"] == cost(backbone.requires_grad_(False), 28)["gflop"] > 0


def test_measuring_changes_nothing():
    backbone = Backbone("test_resnet", timm_kwargs={"drop_rate": 0.5}).train()
    before, state = {k: v.clone() for k, v in backbone.state_dict().items()}, torch.get_rng_state()
    cost(backbone, 64)
    assert backbone.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_batch_that_would_take_too_long_is_not_run(monkeypatch):
    monkeypatch.setattr("distill_dynamics.models.cost.MOST_SECONDS", 0.0)
    found = cost(Backbone("test_resnet"), 64)
    assert found["ms_32"] is None
    assert found["ms_1"] > 0
    assert cost_rows({"student_cost": found})[1][-1] == "–"


def test_costs_are_in_run_json_on_the_page_and_on_the_card(fitted, tmp_path):
    start = json.loads((fitted / "run.json").read_text())["starts"][-1]
    teacher, student = start["teacher_cost"], start["student_cost"]
    assert teacher["parameters"] > student["parameters"] > 0
    page = write_report([fitted], tmp_path / "report.html").read_text()
    assert "teacher / student" in page
    assert f"{teacher['parameters'] / student['parameters']:.1f}" in page
    assert "GFLOP" in (fitted / "student" / "README.md").read_text()
    assert max(map(len, aligned(cost_rows(start)))) <= 67  # of a terminal's 80, 13 are before it


@pytest.mark.parametrize("wrong", [None, 3, {"parameters": "many"}, {"gflop": None}, {"parameters": True}])
def test_a_run_of_others_may_say_anything(wrong):
    assert all(isinstance(cell, str) for row in cost_rows({"student_cost": wrong}) for cell in row)
