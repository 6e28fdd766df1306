"""The hours and the cost in docker/README.md, computed again from what it says they are computed from."""

import re

import pytest
import timm
import torch
import yaml
from conftest import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill_dynamics import Backbone
from distill_dynamics.models.eval_forms import EvalTalkingHeads

README = (ROOT / "docker" / "README.md").read_text()
BASE = (ROOT / "configs" / "imagenet" / "base.yaml").read_text()
IMAGES, BATCH, GPUS, IMAGES_PER_CORE, PRICE = 1_281_167, 256, 8, 200, 39.33
TRAFFIC, HALF, FULL = 3.0e12, 800e12, 60e12  # bytes and operations a second of one H100


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?:\.\d+)?", text)]


def rows() -> list[list[str]]:
    table = README.partition("| on an H100 |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


def gflop(name: str) -> float:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        images = torch.zeros(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(images)
    return counter.get_total_flops() / 1e9


def test_an_image_costs_what_both_places_say():
    models = yaml.safe_load(BASE)["model"]
    student, teacher = (gflop(models[role]["name"]) for role in ("student", "teacher"))
    image = 3 * student + teacher
    assert f"3 × {student:.2f} + {teacher:.2f} = {image:.1f} GFLOP" in README
    assert f"3 x {student:.2f} GFLOP of student, {teacher:.2f}" in BASE
    assert f"{image * 1e9 * IMAGES * 300:.1e}".replace("+", "") in BASE
    traffic, computing = 167e9 / TRAFFIC, BATCH * teacher * 1e9 / HALF
    assert f"moves 167 GB, {traffic * 1e3:.0f} ms, and computes for {computing * 1e3:.0f} ms" in README
    with torch.device("meta"):  # "here they are mixed where they lie"
        attention = Backbone(models["teacher"]["name"]).model.blocks[0].attn
    assert type(attention) is EvalTalkingHeads
    # No row may be faster than arithmetic alone: the first in float32, the last without the teacher.
    bounds = [numbers(row[1])[0] for row in rows()]
    assert bounds[0] < FULL / (image * 1e9)
    assert max(bounds[1:-1]) < HALF / (image * 1e9)
    assert bounds[-1] < HALF / (3 * student * 1e9)


def test_hours_cores_and_cost_follow_from_what_is_expected():
    assert yaml.safe_load(BASE)["data"]["init_args"]["batch_size"] == BATCH
    assert len(rows()) == 5
    for _, bound, expected, all_of_them, cores, short, long, cost in rows():
        rates = numbers(expected)
        assert rates == sorted(rates)
        assert rates[1] < numbers(bound)[0]
        assert numbers(all_of_them) == [GPUS * rate for rate in rates]
        assert numbers(cores) == [GPUS * rate / IMAGES_PER_CORE for rate in rates]
        hours = [300 * IMAGES / (GPUS * rate) / 3600 for rate in reversed(rates)]
        assert numbers(short) == pytest.approx(hours, abs=0.051)
        assert numbers(long) == pytest.approx([hour * 5 / 3 for hour in hours], abs=0.051)
        assert numbers(cost) == pytest.approx([hour * PRICE for hour in hours], abs=0.51)
    (shipped,) = (row for row in rows() if row[0].startswith("as shipped"))
    assert yaml.safe_load(BASE)["trainer"]["precision"].startswith(shipped[0].partition(": ")[2])
    slowest, fastest = (round(4300 * IMAGES / (GPUS * rate) / 3600) for rate in numbers(shipped[2]))
    assert f"epochs: {fastest} to {slowest} h as shipped" in README


def test_gradients_take_as_long_as_it_says():
    student = timm.create_model(yaml.safe_load(BASE)["model"]["student"]["name"])
    size = 4 * sum(parameter.numel() for parameter in student.parameters())
    assert f"{size / 1e6:.0f} MB a device" in README
    assert [round(2 * size * 8 / rate * 1e3) for rate in (10e9, 400e9)] == [37, 1]
