"""The hours and the cost in docker/README.md, computed again from what it says they are computed from."""

import re

import pytest
import timm
import torch
import yaml
from conftest import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

README = (ROOT / "docker" / "README.md").read_text()
BASE = (ROOT / "configs" / "imagenet" / "base.yaml").read_text()
IMAGES, BANDWIDTH, PEAK = 1_281_167, 936, 71
TEACHER, STUDENT = 908.65, 2290.53
RATE = 1 / (1 / TEACHER + 1 / STUDENT)


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?:\.\d+)?", text)]


def row(name: str) -> list[str]:
    (found,) = re.findall(rf"^\| {re.escape(name)}.*$", README, re.MULTILINE)
    return [cell.strip() for cell in found.strip("|").split("|")]


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
    assert f"{RATE * image / 1e3:.0f} TFLOPS, {RATE * image / 1e3 / PEAK:.0%}".replace("%", " %") in README


@pytest.mark.parametrize("gpu", ["A100", "H100"])
def test_hours_and_cost_follow_from_the_throughputs(gpu):
    assert f"1 / (1/{TEACHER} + 1/{STUDENT}) = {RATE:.0f} images a second" in README
    cells = row(gpu)
    bandwidth, peak = numbers(cells[1])[:2]
    rates = [8 * RATE * bandwidth / BANDWIDTH, 8 * RATE * peak / PEAK]
    assert numbers(cells[3]) == pytest.approx(rates, abs=50)
    hours = {epochs: [epochs * IMAGES / rate / 3600 for rate in reversed(rates)] for epochs in (300, 500)}
    assert numbers(cells[4]) == pytest.approx(hours[300], abs=0.051)
    assert numbers(cells[5]) == pytest.approx(hours[500], abs=0.051)

    header = row("row of Table 1")
    (column,) = [n for n, cell in enumerate(header) if gpu in cell]
    price = numbers(header[column])[-1]
    for name, epochs, share in (
        ("SoftKD; ", 300, 1),
        ("SoftKD 500", 500, 1),
        ("all thirteen", 300, 4300 / 300),
    ):
        expected = [price * hour * share for hour in hours[epochs]]
        assert numbers(row(name)[column]) == pytest.approx(expected, rel=0.01)
