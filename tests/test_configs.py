"""Every shipped config starts: all that `fit` builds is built, short of training."""

import pytest
import torch
import yaml
from conftest import ROOT, blank_real_vit
from PIL import Image

from distill_dynamics.cli.fit import DistillCLI
from distill_dynamics.cli.main import main
from distill_dynamics.models import WideLast
from distill_dynamics.models.backbone import Backbone

CONFIGS = ROOT / "configs"
CONTROL = CONFIGS / "fashion_mnist" / "teacher_cait24_std035.yaml"
"""Given after the teacher's own config."""
LABEL_FREE = [CONFIGS / "label_free" / f"{name}.yaml" for name in ("fashion_mnist", "dinov3_vit_tiny")]
STANDALONE = [CONFIGS / "quickstart.yaml", *sorted(CONFIGS.glob("*/teacher*.yaml")), *LABEL_FREE]
NONE = {"base.yaml", "beta.yaml"}  # not an experiment by itself; a sweep of W&B's
NONE |= {"finetune.yaml", "linear.yaml"}  # of a student that is given: test_fine_tuning.py
ROWS = [p for p in sorted(CONFIGS.glob("*/*.yaml")) if p.name not in NONE and p not in STANDALONE]
PUBLISHED = {  # Table 1: top-1 in percent, (first, last), weight, epochs
    "softkd": (76.99, None, None, 300),
    "softkd_500": (78.07, None, None, 500),
    "spectralkd_f2_l6": (77.07, (2, 6), 0.2, 300),
    "spectralkd_f2_l1": (77.06, (2, 1), 0.2, 300),
    "spectralkd_f1_l1": (77.08, (1, 1), 0.2, 300),
    "spectralkd_f1": (77.00, (1, 0), 0.2, 300),
    "spectralkd_l1": (76.83, (0, 1), 0.2, 300),
    "spectralkd_l1_500": (77.59, (0, 1), 0.2, 500),
    "spectralkd_l1_beta01": (76.48, (0, 1), 0.1, 300),
    "spectralkd_l8": (76.69, (0, 8), 0.2, 300),
    "projectorkd_f1": (76.86, (1, 0), 0.2, 300),
    "projectorkd_l1": (76.72, (0, 1), 0.2, 300),
    "projectorkd_f1_l1": (76.80, (1, 1), 0.2, 300),
    "lift": (77.53, (0, 1), 0.2, 300),
    "wide_last": (78.23, (0, 1), 0.2, 300),
    "wider": (None, (0, 1), 0.2, 300),
    "wider_lift": (None, (0, 1), 0.2, 300),
}
RESHAPED = {"lift": 5_983_528, "wide_last": 7_313_896, "wider": 7_372_759, "wider_lift": 6_067_126}
"""Parameters of students that are not DeiT-Tiny."""


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """ImageNet's layout: 1,000 classes, an image each."""
    root = tmp_path_factory.mktemp("imagenet")
    image = Image.new("RGB", (40, 30), (200, 100, 50))
    for split in ("train", "val"):
        for number in range(1000):
            folder = root / split / f"n{number:08d}"
            folder.mkdir(parents=True)
            image.save(folder / "a.JPEG")
    return root


def build(monkeypatch, tmp_path, *args):
    """The command line with everything built, stopped where `fit` would begin."""
    kept = {}
    monkeypatch.setattr(DistillCLI, "_run_subcommand", lambda self, command: kept.update(cli=self))
    # A cluster's devices are not here.
    main(["fit", *map(str, args), "--runs_dir", str(tmp_path), "--trainer.accelerator", "cpu"])
    return kept["cli"]


def aligned(model):
    """Pairs and weight of each term that aligns blocks."""
    return [(term.pairs, term.weight) for term in model.terms.values() if term.pairs]


def configs(path):
    base = CONFIGS / "quickstart.yaml" if path.parent.name == "methods" else path.parent / "base.yaml"
    if path == CONTROL:
        base = path.parent / "teacher_cait24.yaml"
    files = [path] if path in STANDALONE and path != CONTROL else [base, path]
    return [argument for file in files for argument in ("--config", file)]


@pytest.fixture(autouse=True)
def _no_random_weights(monkeypatch):
    """Drawing the 50 million of a CaiT-S24 would take most of the time, and none is looked at."""
    for draw in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, draw, lambda weights, *_, **__: weights.zero_())


@pytest.mark.parametrize("path", [*STANDALONE, *ROWS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_config_builds(path, monkeypatch, tmp_path, image_folder):
    imagenet = path.parent.name == "imagenet"
    made = {"--model.teacher.pretrained": "false", "--data.data_dir": image_folder, "--data.num_workers": 0}
    of_folder = imagenet or path.stem == "dinov3_vit_tiny"
    extra = [item for pair in made.items() for item in pair] if of_folder else []
    monkeypatch.chdir(ROOT)  # the study's teachers are named from there
    if path.stem == "two_teachers" or path == LABEL_FREE[0]:
        blank_real_vit(tmp_path, monkeypatch)
    built = build(monkeypatch, tmp_path, *configs(path), *extra)
    model, data = built.model, built.datamodule
    assert data.batch_size > 0
    if path in LABEL_FREE:
        assert model.student.num_classes == data.num_classes == 0
        assert {w.word for w in model.wanted} == {"map", "pooled"}
    if imagenet:
        top1, ends, weight, epochs = PUBLISHED[path.stem]
        assert top1 is None or f"{top1:.2f} %" in path.read_text()
        assert built.trainer.max_epochs == epochs
        parameters = RESHAPED.get(path.stem, 5_717_416)
        assert sum(p.numel() for p in model.student.parameters()) == parameters
        assert (len(model.student.layers), len(model.teacher.backbone.layers)) == (12, 24)
        if ends is None:
            assert not aligned(model)
        else:
            first, last = ends
            ((pairs, given),) = aligned(model)
            assert pairs == [(i, i) for i in range(1, first + 1)] + [
                (13 - i, 25 - i) for i in range(last, 0, -1)
            ]
            assert given == weight
        data.setup("fit")
        images, _targets = next(iter(data.val_dataloader()))
        assert images.shape[1:] == (3, 224, 224)
        with torch.no_grad():
            assert model.student.eval()(images[:1]).logits.shape == (1, 1000)
    elif (row := path.stem.replace("_long", "_500")) in PUBLISHED:
        _, ends, weight, epochs = PUBLISHED[row]
        assert built.trainer.max_epochs == round(epochs / 300 * 12)
        expected = [] if ends is None else [[*range(1, ends[0] + 1), *range(13 - ends[1], 13)]]
        assert [[s for s, _ in pairs] for pairs, _ in aligned(model)] == expected
        assert weight is None or [given for _, given in aligned(model)] == [weight]


TAUGHT_BY_CAIT = [
    p for p in ROWS if p.parent.name == "fashion_mnist" and "none" not in p.stem and "resnet" not in p.stem
]


@pytest.mark.parametrize("path", TAUGHT_BY_CAIT, ids=lambda p: p.stem)
def test_rows_of_the_study_build_on_cifar10_too(path, monkeypatch, tmp_path):
    base = CONFIGS / "cifar10" / "base.yaml"
    built = build(
        monkeypatch, tmp_path, "--config", base, "--config", path, "--model.teacher.checkpoint", "null"
    )
    model, data = built.model, built.datamodule
    assert (len(model.student.layers), len(model.teacher.backbone.layers)) == (12, 24)
    images = torch.zeros(1, data.in_chans, data.image_size, data.image_size)
    with torch.no_grad():
        assert model.student.eval()(images).logits.shape == (1, 10)


PAPERS = [path for path in ROWS if path.parent.name != "methods"]  # those are of other papers


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_row_is_a_lab_record(path):
    head = path.read_text().split("\nmodel:")[0]
    for word in ("Paper row", "Command", "Expected", f"{path.parent.name}/{path.name}"):
        assert word in head
    given = yaml.safe_load(path.read_text())
    assert set(given) <= {"model", "trainer", "data"}
    assert set(given.get("data", {}).get("init_args", {})) <= {"std"}  # the data are the same in all rows


def test_a_wider_student_has_about_as_many_parameters_as_what_it_is_the_control_of():
    assert RESHAPED["wider"] == pytest.approx(RESHAPED["wide_last"], rel=0.01)
    assert RESHAPED["wider_lift"] == pytest.approx(RESHAPED["lift"], rel=0.015)  # widths are multiples of 3
    head = (CONFIGS / "methods" / "wider.yaml").read_text()
    student = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())["model"]["student"]
    wide = WideLast(student["name"], 64, timm_kwargs=student["timm_kwargs"])
    kwargs = yaml.safe_load(head)["model"]["student"]["timm_kwargs"]
    assert {**student["timm_kwargs"], "embed_dim": kwargs["embed_dim"]} == kwargs
    wider = Backbone(student["name"], timm_kwargs=kwargs)
    counts = [sum(p.numel() for p in one.parameters()) for one in (wide, wider)]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)
    assert all(f"{count:,}" in head for count in counts)


def test_every_row_of_table_1_is_there():
    assert {p.stem for p in ROWS if p.parent.name == "imagenet"} == set(PUBLISHED)
