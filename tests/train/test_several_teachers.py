"""Several teachers, each with terms, normalisation, precision and a place in a run's files of its own."""

import json
import re
from functools import partial

import own_losses
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from conftest import VIT, fit_once, refused
from lightning.pytorch import Trainer, seed_everything
from standins import Rows
from test_fit import assert_same_run, fit, rows

from distill_dynamics import Backbone, Distiller, TeacherSettings, Term, UserError
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.losses import SoftKD, SpectralKD
from distill_dynamics.report.methods import describe
from distill_dynamics.runs.profiles import load_profiles
from distill_dynamics.train.gates import CapacityGate

STUDENT = {"name": "deit_tiny_patch16_224", "timm_kwargs": {**VIT, "depth": 2}}
TOKENS = {  # without a head
    "name": "vit_tiny_patch16_224",
    "timm_kwargs": {**VIT, "embed_dim": 24, "depth": 3, "num_classes": 0},
    "mean": 0.2,
    "std": 0.4,
}
CLASSES = {"name": "cait_xxs24_224", "timm_kwargs": {**VIT, "depth": 2}, "mean": 0.7, "std": 0.5}
TERMS = {
    "tokens": Term(own_losses.Maps, weight=0.5, pairs=[(2, 3)], teacher="dino"),
    "kd": Term(SoftKD, weight=0.7, teacher="labels"),
}


def backbone(settings):
    settings = {**settings}
    for key in settings.keys() & {"mean", "std"}:
        settings[key] = [settings[key]]
    return Backbone(**settings)


def made(terms=None, teacher=None, teachers=None, **settings):
    """A Distiller of the two teachers, or of those given; all from one seed."""
    seed_everything(1, verbose=False)
    student = backbone(STUDENT)
    known = {"dino": TOKENS, "labels": CLASSES} if teachers is None else teachers
    named = {
        name: of if isinstance(of, TeacherSettings) else TeacherSettings(backbone(of))
        for name, of in known.items()
    }
    settings = {"scheduler": None, "optimizer": partial(torch.optim.SGD, lr=0.05), **settings}
    one = None if teacher is None else backbone(teacher)
    return Distiller(student, one, TERMS if terms is None else terms, teachers=named, **settings)


def data():
    return FashionMNISTSample(batch_size=16, eval_batch_size=100, num_workers=0, crop_padding=2)


def trained(distiller, **settings):
    """The rows of metrics.csv of a short training."""
    log = Rows()
    off = dict.fromkeys(["enable_progress_bar", "enable_checkpointing", "enable_model_summary"], False)
    options = {"limit_train_batches": 4, "limit_val_batches": 1, "max_epochs": 1, **settings, **off}
    trainer = Trainer(accelerator="cpu", devices=1, logger=log, use_distributed_sampler=False, **options)
    trainer.fit(distiller, datamodule=data())
    return log.rows


def without_clock(found):
    return [{name: value for name, value in row.items() if name != "train/images_per_s"} for row in found]


# --- the step -----------------------------------------------------------------------------------------


def test_two_teachers_train_as_a_loop_by_hand_does():
    distiller = made()
    plain = timm.create_model(STUDENT["name"], **STUDENT["timm_kwargs"])
    plain.load_state_dict(distiller.student.model.state_dict())
    tokens, classes = (timm.create_model(of["name"], **of["timm_kwargs"]).eval() for of in (TOKENS, CLASSES))
    tokens.load_state_dict(distiller.teachers["dino"].backbone.model.state_dict())
    classes.load_state_dict(distiller.teachers["labels"].backbone.model.state_dict())
    project = torch.nn.Linear(16, 24)
    project.load_state_dict(distiller.terms["tokens"][0].project.state_dict())
    last = trained(distiller)[-1]

    module = data()
    module.setup("fit")
    optimizer = torch.optim.SGD([*plain.parameters(), *project.parameters()], lr=0.05)
    sums = dict.fromkeys(["ce", "tokens", "kd"], 0.0)
    for number, (images, targets, *_) in enumerate(module.train_dataloader()):
        if number == 4:
            break
        pixels = images * module.std[0] + module.mean[0]
        with torch.no_grad():
            (map_,) = tokens.forward_intermediates((pixels - 0.2) / 0.4, indices=[2], intermediates_only=True)
            logits = classes((pixels - 0.7) / 0.5)
        final, (own,) = plain.forward_intermediates(images, indices=[1])
        answer = plain.forward_head(final)
        losses = {
            "ce": F.cross_entropy(answer, targets, label_smoothing=0.1),
            "tokens": F.mse_loss(project(own.flatten(2).mT), map_.flatten(2).mT),
            "kd": F.kl_div(answer.log_softmax(1), logits.softmax(1), reduction="batchmean"),
        }
        optimizer.zero_grad()
        (losses["ce"] + 0.5 * losses["tokens"] + 0.7 * losses["kd"]).backward()
        optimizer.step()
        sums = {name: sums[name] + loss.item() / 4 for name, loss in losses.items()}
    assert {name: last[f"train/loss_{name}"] for name in sums} == pytest.approx(sums, rel=1e-5)
    assert last["train/loss"] == pytest.approx(sums["ce"] + 0.5 * sums["tokens"] + 0.7 * sums["kd"], rel=1e-5)
    for name, value in plain.state_dict().items():
        assert torch.allclose(distiller.student.model.state_dict()[name], value, atol=1e-6), name


def test_one_with_a_name_trains_as_the_one_without_does():
    terms = {"s": Term(SpectralKD, last=1), "kd": Term(SoftKD, weight=0.7)}
    alone = trained(made(terms, teacher=CLASSES, teachers={}, alpha=0.0))
    assert without_clock(trained(made(terms, teachers={"a": CLASSES}))) == without_clock(alone)
    assert alone[0].keys() >= {"teacher/acc1"}
    named = {name: Term(term.loss, term.weight, last=term.last, teacher="a") for name, term in terms.items()}
    assert without_clock(trained(made(named, teachers={"a": CLASSES}))) == without_clock(alone)


def test_one_without_a_name_beside_one_with():
    """`alpha` and terms that name none are of the first."""
    distiller = made({"tokens": TERMS["tokens"]}, teacher=CLASSES, teachers={"dino": TOKENS})
    assert {one.teacher for one in distiller.terms["kd"].of_teacher()} == {""}
    assert distiller.terms["kd"].weight == 0.9
    last = trained(distiller)
    assert {"teacher/acc1"} <= last[0].keys()
    assert not any(name.startswith("teacher_dino/") for name in last[0])


def test_a_teacher_is_asked_once_and_for_its_own_terms_alone():
    distiller = made({**TERMS, "maps": Term(SpectralKD, last=1, teacher="labels")})
    asked = {}
    for name, teacher in distiller.teachers.items():
        read = teacher.read
        teacher.read = lambda batch, reads, name=name, read=read: (
            asked.setdefault(name, []).append(set(reads)) or read(batch, reads)
        )
    images = torch.randn(3, 1, 28, 28)
    distiller.losses(images, {"targets": torch.arange(3), "progress": 0.0, "index": None})
    assert asked == {
        "dino": [{("map", 3)}],
        "labels": [{("logits", None), ("map", 2)}],
    }


def test_gates_and_what_is_fitted_are_of_the_terms_own_teacher():
    terms = {
        "gated": Term(SpectralKD, pairs=[(1, 1), (2, 3)], gate=CapacityGate(), teacher="dino"),
        "centred": Term(own_losses.Centred, teacher="labels"),
    }
    distiller = made(terms)
    trained(distiller)
    shown = data()
    shown.setup("fit")
    probe = shown.probe_set(1024, split="train", at_most=True).normalised([0.7], [0.5])
    (loss,), teacher = distiller.terms["centred"], distiller.teachers["labels"].backbone
    with torch.no_grad():
        read = torch.cat([teacher(part, logits=False, pooled=True).pooled for part in probe.split(64)])
    assert torch.allclose(loss.mean, read.mean(0), atol=1e-5)
    gates = distiller.terms["gated"].gates
    assert gates.min() == 0  # one block of the wider teacher is the hardest to hold
    assert gates.max() > 0


def test_in_a_precision_of_its_own():
    half = TeacherSettings(backbone(TOKENS), precision="bf16-mixed")
    distiller = made(teachers={"dino": half, "labels": CLASSES})
    seen = []
    for name, teacher in distiller.teachers.items():
        teacher.backbone.register_forward_pre_hook(
            lambda *args, name=name: seen.append((name, torch.is_autocast_enabled("cpu")))
        )
    images = torch.randn(3, 1, 28, 28)
    distiller.losses(images, {"targets": torch.arange(3), "progress": 0.0, "index": None})
    assert ("dino", True) in seen  # and of one image without, to see how large its tensors are
    assert {half for name, half in seen if name == "labels"} == {False}


# --- a run --------------------------------------------------------------------------------------------


def of_config(settings):
    return {**settings, "mean": [settings["mean"]], "std": [settings["std"]]}


CONFIG = {
    "model__teacher": None,
    "model__teachers": {
        "dino": {"backbone": of_config(TOKENS)},  # files of tests are sorted by name: it is the first
        "labels": {"backbone": of_config(CLASSES)},
    },
    "model__terms": {
        "tokens": {
            "loss": {"class_path": "distill_dynamics.losses.TokenKD"},
            "weight": 1.0,
            "pairs": [[2, 3]],
            "teacher": "dino",
        },
        "kd": {
            "loss": {"class_path": "distill_dynamics.losses.SoftKD"},
            "weight": 0.5,
            "teacher": "labels",
        },
    },
    "model__scheduler": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit_once(tmp_path_factory.mktemp("several"), **CONFIG)


def test_what_a_run_says_of_each(run):
    first = rows(run)[0]
    assert float(first["teacher_labels/acc1"]) == pytest.approx(10, abs=15)
    assert "teacher/acc1" not in first  # the first has no head
    for role, block in (("teacher", 3), ("teacher_labels", 2)):
        assert first[f"dynamics/{role}/entropy/block_{block:02d}"]
    profiles = load_profiles(run / "dynamics")
    assert profiles.teacher.model == TOKENS["name"]
    assert {name: profile.model for name, profile in profiles.others.items()} == {"labels": CLASSES["name"]}
    assert profiles.students[0].pairs["cka"].shape == (2, 3)  # beside the first
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    assert start["teacher"]["name"] == TOKENS["name"]
    assert {name: of["role"] for name, of in start["teachers"].items()} == {
        "dino": "teacher",
        "labels": "teacher_labels",
    }
    assert start["teachers"]["labels"]["acc1"] == pytest.approx(float(first["teacher_labels/acc1"]))
    card = (run / "student" / "README.md").read_text()
    assert f"| teacher dino | `{TOKENS['name']}` |" in card
    assert f"| teacher labels's top-1 | {float(first['teacher_labels/acc1']):.2f} % |" in card


def test_the_page_names_both(run, tmp_path):
    page = tmp_path / "page.html"
    main(["report", str(run), "--out", str(page)])
    text = re.sub(r"<[^>]+>", " ", page.read_text())
    assert "teacher labels" in text
    assert "it is the first, dino; labels stand" in " ".join(text.split())
    assert "No accuracy of a teacher" not in text
    assert "No Profile of a teacher" not in text
    name, *_ = describe(yaml.safe_load((run / "config.yaml").read_text()))
    assert name == "SoftKD of labels + TokenKD of dino"


def test_validating_measures_those_that_can_answer(run, capsys):
    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "best"])
    printed = capsys.readouterr().out
    assert "teacher_labels/acc1" in printed
    assert "teacher/acc1" not in printed


def test_a_run_that_goes_on_is_one_that_was_not_interrupted(run, experiment, tmp_path, no_report, capsys):
    config = experiment(**CONFIG)
    fit(config, "--name", "r", "--trainer.max_epochs", "1")
    capsys.readouterr()
    fit(config, "--name", "r", "--ckpt_path", "last")
    assert_same_run(tmp_path / "runs" / "r", run)
    printed = capsys.readouterr().out
    top1 = float(rows(run)[0]["teacher_labels/acc1"])
    assert f"teacher labels {top1:.2f}" in printed  # from the checkpoint
    assert re.search(r"^  teacher dino +vit_tiny_patch16_224: ", printed, re.M)


def test_a_run_does_not_go_on_with_another_one_first(run, tmp_path, capsys):
    """`dynamics/teacher/*` before and after would be of two models."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["teachers"] = dict(reversed([*config["model"]["teachers"].items()]))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(config, sort_keys=False))
    line = refused(capsys, "fit", "--config", other, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert "the first teacher, which files and metrics call teacher, was dino and is labels" in line


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"terms": {"kd": Term(SoftKD)}}, "terms.kd: which teacher does it read.*one of dino, labels"),
        (
            {"terms": {"kd": Term(SoftKD, teacher="b")}},
            "no teacher 'b'; those .* are dino, labels",
        ),
        (
            {"terms": {"kd": Term(SoftKD, teacher="b")}, "teacher": CLASSES, "teachers": {}},
            "there is no teacher 'b'; model.teachers has none",
        ),
        (
            {"terms": {**TERMS, "i": Term(own_losses.Instance, teacher="dino")}},
            "terms.i: its loss reads no teacher, so leave out teacher: dino",
        ),
        ({"terms": {"kd": TERMS["kd"]}}, "model.teachers.dino: no term reads it"),
        (
            {"alpha": 0.5},
            r"model.alpha is the share of model.teacher.*loss: SoftKD, weight: 0.5, teacher",
        ),
        ({"teachers": {"a/b": CLASSES}, "terms": {}}, "model.teachers: 'a/b' is no name of files"),
        ({"teachers": {1: CLASSES}, "terms": {}}, r"model.teachers: 1 is no name of files.*in quotes"),
        ({"teachers": {}}, "there is no teacher 'dino'|reads the teacher, and there is none"),
    ],
)
def test_a_mistake_is_a_line(settings, words):
    with pytest.raises(UserError, match=words) as error:
        made(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"precision": "16"}, "model.teachers.dino.precision is 32-true or"),
        ({"cache": "here"}, "model.teachers.labels.cache is that of model.teachers.dino"),
        ({"shard": True}, "model.teachers.dino.shard: a teacher cannot be sharded with its channels last"),
    ],
)
def test_a_setting_that_is_none_is_a_line(given, words):
    teachers = {
        "dino": TeacherSettings(backbone(TOKENS), **given),
        "labels": TeacherSettings(backbone(CLASSES), cache=given.get("cache")),
    }
    with pytest.raises(UserError, match=words):
        made(teachers=teachers, channels_last="shard" in given)


def test_a_backbone_without_its_settings_is_a_line():
    with pytest.raises(UserError, match=r"'dino' is of the type Backbone; give distill_dynamics\.TeacherSet"):
        Distiller(backbone(STUDENT), teachers={"dino": backbone(TOKENS)})


def test_a_mistake_in_a_config_says_which_teacher(experiment, capsys):
    def error(**changes):
        config = {**CONFIG, **changes}
        line = refused(capsys, "fit", "--config", experiment(**config))
        assert len(line.strip().splitlines()) == 1, line
        return line

    teachers = CONFIG["model__teachers"]
    headless = {**CONFIG["model__terms"]["kd"], "teacher": "dino"}
    line = error(model__terms={**CONFIG["model__terms"], "more": headless})
    assert "model.teachers.dino has 0 classes and the student 10" in line
    wide = {"backbone": {**of_config(CLASSES), "timm_kwargs": {**VIT, "in_chans": 3, "img_size": 30}}}
    assert "model.teachers.labels: " in error(model__teachers={**teachers, "labels": wide})
    unknown = {**teachers, "labels": {**teachers["labels"], "chache": "x"}}
    assert "chache" in error(model__teachers=unknown)
    line = error(model__teachers={**teachers, "labels": teachers["labels"]["backbone"]})
    assert re.search(r"model\.teachers\.labels\.(\w+): no key '\1'; did you mean 'backbone\.\1'\?", line)
