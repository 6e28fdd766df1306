"""What half precision changes, against timm's model under torch's autocast."""

import copy
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from distill_dynamics import Backbone
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.train.precision_error import precision_error

READS = [("logits", None), ("map", 2)]
PIXELS = torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def trainer(precision="32-true"):
    drawn = SimpleNamespace(normalised=lambda mean, std: (PIXELS - mean[0]) / std[0])
    return SimpleNamespace(
        precision=precision,
        datamodule=SimpleNamespace(probe_set=lambda n, at_most: drawn, mean=(0.3,), std=(0.4,)),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision_plugin=SimpleNamespace(
            forward_context=lambda: (
                torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
            )
        ),
    )


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    size = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 24, "depth": 3, "num_classes": 10}
    return Backbone("cait_xxs24_224", timm_kwargs=size, mean=[0.3], std=[0.4])


@pytest.mark.parametrize("own", [True, False])
def test_the_line_has_the_loss_of_a_student_that_is_the_teacher_in_float32(teacher, own):
    model, images = copy.deepcopy(teacher.model).eval(), (PIXELS - 0.3) / 0.4
    with torch.no_grad():
        exact, (exact_map,) = model(images), model.forward_intermediates(images, [1], norm=False)[1]
        with torch.autocast("cpu", torch.bfloat16):
            half, (half_map,) = model(images), model.forward_intermediates(images, [1], norm=False)[1]
    loss = F.kl_div(exact.log_softmax(1), half.float().log_softmax(1), reduction="batchmean", log_target=True)
    same = (exact.argmax(1) == half.argmax(1)).sum().item()
    of_map = 100 * ((half_map.float() - exact_map).norm() / exact_map.norm()).item()

    given = (Teacher(teacher, "bf16-mixed"), trainer()) if own else (Teacher(teacher), trainer("bf16-mixed"))
    line = precision_error(*given, READS)
    assert line.startswith("bf16-mixed beside float32, 32 images: loss ")
    found = re.search(r"loss (\S+) where it would be 0, top-1 equal for (\d+), features within (\S+) %", line)
    assert float(found[1]) == pytest.approx(loss.item(), rel=0.06)
    assert loss > 0
    assert int(found[2]) == same
    assert float(found[3]) == pytest.approx(of_map, rel=0.06)


def test_of_a_cached_view_all_other_classes_share_their_rest(teacher):
    line = precision_error(Teacher(teacher, "bf16-mixed"), trainer(), READS[:1], top_k=3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = teacher.model((PIXELS - 0.3) / 0.4).float().softmax(1)
    with torch.no_grad():
        exact = teacher.model((PIXELS - 0.3) / 0.4).log_softmax(1)
    kept = half.topk(3, dim=1)
    even = ((1 - kept.values.sum(1, keepdim=True)) / 7).expand(-1, 10).scatter(1, kept.indices, kept.values)
    loss = (even * (even.log() - exact)).sum(1).mean().item()
    assert float(re.search(r"loss of a cached view (\S+) where", line)[1]) == pytest.approx(loss, rel=0.06)
    assert "features" not in line


def test_without_half_precision_there_is_nothing_to_say(teacher):
    assert not precision_error(Teacher(teacher), trainer(), READS)
    assert not precision_error(Teacher(teacher, "32-true"), trainer("bf16-mixed"), READS)
    assert not precision_error(Teacher(teacher, "bf16-mixed"), trainer(), [])
