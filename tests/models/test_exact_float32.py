"""Probes are float32, whatever speed was preferred outside; what was preferred holds again afterwards."""

from contextlib import suppress

import pytest
import torch
from conftest import VIT
from torch import backends

from distill_dynamics import Backbone
from distill_dynamics.dynamics import profile_model
from distill_dynamics.models.exact_float32 import exact_float32

PREFERENCES = {
    "torch's defaults": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "no TF32 for convolutions": lambda: setattr(backends.cudnn, "allow_tf32", False),
}
if hasattr(backends, "fp32_precision"):  # torch 2.9 and later
    PREFERENCES["everything TF32"] = lambda: setattr(backends, "fp32_precision", "tf32")
    PREFERENCES["products TF32"] = lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32")


def answer(question):
    try:
        return question()
    except RuntimeError:
        return "torch does not say"


def settings() -> dict[str, object]:
    """All that torch tells of them, older switches and newer ones."""
    asked = {
        "matmul": torch.get_float32_matmul_precision,
        "cuBLAS": lambda: backends.cuda.matmul.allow_tf32,
        "cuDNN": lambda: backends.cudnn.allow_tf32,
    }
    for library in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv"):
        place = backends
        for name in library.split("."):
            place = getattr(place, name, None)
        if hasattr(place, "fp32_precision"):
            asked[library] = lambda place=place: place.fp32_precision
    return {name: answer(question) for name, question in asked.items()}


@pytest.fixture(autouse=True)
def _as_before():
    old = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    newer = getattr(backends, "fp32_precision", None)
    yield
    if newer is not None:
        backends.fp32_precision = newer
    torch.set_float32_matmul_precision(old[0])
    backends.cudnn.allow_tf32 = old[1]


@pytest.mark.filterwarnings("ignore")  # torch's, that there are newer settings
@pytest.mark.parametrize("preference", PREFERENCES)
def test_nothing_is_faster_and_less_exact_inside_and_all_is_as_before_after_an_error(preference):
    PREFERENCES[preference]()
    before = settings()
    with suppress(KeyError), exact_float32():
        inside = settings()
        raise KeyError
    assert settings() == before
    assert inside["matmul"] == "highest"
    assert inside["cuBLAS"] is inside["cuDNN"] is False
    assert {v for name, v in inside.items() if "." in name} <= {"ieee"}


def test_a_probe_is_the_same_to_the_bit_where_a_cpu_computes_float32_in_bfloat16():
    torch.manual_seed(0)
    backbone = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "embed_dim": 64, "depth": 2}).eval()
    images = torch.randn(32, 1, 28, 28)
    expected, answer = profile_model(backbone, images), backbone(images).logits
    torch.set_float32_matmul_precision("medium")
    if torch.equal(backbone(images).logits, answer):
        pytest.skip("this CPU has no products in bfloat16")
    found = profile_model(backbone, images)
    assert all((found.curves[name] == curve).all() for name, curve in expected.curves.items())
