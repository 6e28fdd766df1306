"""The study's real ViT: its weights' mapping, and what is said of its kept Profiles."""

import csv
import importlib

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from torch.nn import functional as F

STUDY = ROOT / "notebooks" / "study"
KEPT = STUDY / "results" / "real_vit"
RANGES = ("global", "layer", "scaled", "edge", "middle")

# --- weights ----------------------------------------------------------------------------------------------

WIDTH, HIDDEN, DEPTH, HEADS, PATCH, NATIVE, SIDE = 16, 64, 2, 2, 4, 5, 3


def made_up():
    """A DINOv2 as an exporter leaves it: linear layers' weights [in, out] have a place, but no name."""
    rng = np.random.default_rng(0)
    shapes = {
        "backbone.embeddings.cls_token": (1, 1, WIDTH),
        "backbone.embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "backbone.embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "backbone.layernorm.weight": (WIDTH,),
        "backbone.layernorm.bias": (WIDTH,),
        "decoder.bias": (WIDTH,),
        "onnx::Concat_1": (1, 1, WIDTH),
        "onnx::Reshape_2": (1, NATIVE**2, WIDTH),
    }
    places = {}
    for i in range(DEPTH):
        name, place = f"backbone.encoder.layer.{i}.", f"/backbone/encoder/layer.{i}/"
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "mlp.fc2.bias"):
            shapes[name + part] = (WIDTH,)
        for part in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            shapes[f"{name}{part}.bias"] = (WIDTH,)
        shapes |= {f"{name}layer_scale{k}.lambda1": (WIDTH,) for k in (1, 2)}
        shapes |= {f"{name}attention.output.dense.bias": (WIDTH,), f"{name}mlp.fc1.bias": (HIDDEN,)}
        for part in ("attention/query", "attention/key", "attention/value", "output/dense"):
            places[f"{place}attention/{part}/MatMul"] = (WIDTH, WIDTH)
        places |= {f"{place}mlp/fc1/MatMul": (WIDTH, HIDDEN), f"{place}mlp/fc2/MatMul": (HIDDEN, WIDTH)}
    drawn = [
        {n: rng.normal(size=s).astype(np.float32) / 3 for n, s in all_.items()} for all_ in (shapes, places)
    ]
    for values in drawn:
        for array in values.values():
            array.flags.writeable = False  # as those of an ONNX file are
    return drawn


def slow_form(weights, factors, images):
    """Patch tokens of each block, written from DINOv2's equations with the arrays as they are named."""
    w = {name: torch.tensor(value) for name, value in {**weights, **factors}.items()}
    norm = lambda x, at: F.layer_norm(x, (WIDTH,), w[f"{at}.weight"], w[f"{at}.bias"], 1e-6)  # noqa: E731
    at = "backbone.embeddings.patch_embeddings.projection."
    x = F.conv2d(images, w[f"{at}weight"], w[f"{at}bias"], stride=PATCH).flatten(2).transpose(1, 2)
    grid = w["onnx::Reshape_2"].reshape(1, NATIVE, NATIVE, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(SIDE, SIDE), mode="bicubic").permute(0, 2, 3, 1).reshape(1, -1, WIDTH)
    token = (w["backbone.embeddings.cls_token"] + w["onnx::Concat_1"]).expand(len(images), 1, WIDTH)
    x = torch.cat([token, x + grid], dim=1)
    found = []
    for i in range(DEPTH):
        name, place = f"backbone.encoder.layer.{i}.", f"/backbone/encoder/layer.{i}/"
        y = norm(x, f"{name}norm1")
        q, k, v = (
            (y @ w[f"{place}attention/attention/{part}/MatMul"] + w[f"{name}attention.attention.{part}.bias"])
            .reshape(len(y), -1, HEADS, WIDTH // HEADS)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        y = torch.softmax(q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, dim=-1) @ v
        y = y.transpose(1, 2).reshape(len(y), -1, WIDTH) @ w[f"{place}attention/output/dense/MatMul"]
        x = x + w[f"{name}layer_scale1.lambda1"] * (y + w[f"{name}attention.output.dense.bias"])
        y = norm(x, f"{name}norm2") @ w[f"{place}mlp/fc1/MatMul"] + w[f"{name}mlp.fc1.bias"]
        y = F.gelu(y) @ w[f"{place}mlp/fc2/MatMul"] + w[f"{name}mlp.fc2.bias"]
        x = x + w[f"{name}layer_scale2.lambda1"] * y
        found.append(x[:, 1:])
    return found


def test_the_weights_are_those_of_timms_model(monkeypatch):
    monkeypatch.syspath_prepend(STUDY)
    real_vit = importlib.import_module("real_vit_weights")
    weights, factors = made_up()
    shape = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    model = timm.create_model(real_vit.MODEL, img_size=SIDE * PATCH, num_classes=0, **shape).eval()
    model.load_state_dict(real_vit.timm_state(weights, factors, SIDE))
    images = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = model.forward_intermediates(images, norm=False, intermediates_only=True)
    for ours, theirs in zip(maps, slow_form(weights, factors, images), strict=True):
        torch.testing.assert_close(ours.flatten(2).mT, theirs, rtol=1e-5, atol=1e-5)


# --- what is kept -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept():
    """The kept Profiles as plain arrays."""
    found = {}
    for name in RANGES:
        with np.load(KEPT / f"{name}.npz", allow_pickle=False) as file:
            found[name] = {key: file[key] for key in file.files}
    return found


def test_the_list_of_photographs_is_that_of_the_profiles(kept):
    with (KEPT / "photographs.csv").open(newline="", encoding="utf-8") as file:
        entries = list(csv.DictReader(file))
    for column in ("file", "path", "sha256"):
        assert len({(e["package"] if column == "path" else "", e[column]) for e in entries}) == len(entries)
    assert [e["file"] for e in entries] == sorted(e["file"] for e in entries)
    assert all(len(bytes.fromhex(e["sha256"])) == 32 for e in entries)
    assert all(e[column] for e in entries for column in ("version", "licence", "stated_in", "author"))
    for arrays in kept.values():
        assert sorted(arrays["probe_indices"]) == list(range(len(entries)))
        assert arrays["entropy_images"].shape == arrays["magnitude_images"].shape == (len(entries), 12)
        assert list(arrays["blocks"]) == list(range(1, 13))
        assert arrays["clipped"].max() < 1e-5
    metas = [eval(str(arrays["meta"]), {"null": None}) for arrays in kept.values()]
    assert [meta["range_mode"] for meta in metas] == [*RANGES[:3], "explicit", "explicit"]
    assert {meta["model"] for meta in metas} == {"vit_small_patch14_dinov2"}
    assert len({meta["probe_id"] for meta in metas}) == 1
    for name in RANGES[1:]:
        np.testing.assert_array_equal(kept[name]["magnitude_images"], kept["global"]["magnitude_images"])


def test_the_table_says_what_the_profiles_do(kept):
    with (STUDY / "tables" / "real_vit.csv").open(newline="") as file:
        table = {entry["name"]: entry for entry in csv.DictReader(file)}
    assert {name for name, entry in table.items() if entry["u"] == "1"} == {
        "global",
        "middle",
    }  # edge: too shallow
    width, zero = (float(table["global"][column]) for column in ("bin", "zero"))
    edges = np.linspace(*kept["global"]["value_range"][0], 101)
    assert width == pytest.approx(edges[1] - edges[0], rel=1e-5)
    below = edges[edges <= 0].max()
    assert zero == pytest.approx(-below / width, abs=1e-4)
    assert float(table["edge"]["zero"]) == pytest.approx(0, abs=1e-6)
    assert float(table["middle"]["zero"]) == pytest.approx(0.5, abs=1e-6)
    for name, arrays in kept.items():
        images, entry = arrays["entropy_images"], table[name]
        entropy, scale = images.mean(axis=0), np.log2(arrays["magnitude_images"].mean(axis=0))
        slope, _ = np.polyfit(scale, entropy, 1)
        wanted = {
            "left_mean": entropy[0] - min(entropy),
            "right_mean": entropy[-1] - min(entropy),
            "fall_mean": entropy[0] - entropy[4:8].mean(),
            "rise_mean": entropy[-1] - entropy[4:8].mean(),
            "r2_mean": np.corrcoef(scale, entropy)[0, 1] ** 2,
            "slope_mean": slope,
            "images": len(images),
            "lowest": entropy.argmin() + 1,
            "magnitude_lowest": scale.argmin() + 1,
        }
        assert {column: float(entry[column]) for column in wanted} == pytest.approx(
            wanted, rel=1e-5, abs=1e-6
        )
        for column, block in (("fall", 0), ("rise", -1)):  # means over images: near the normal interval
            heights = images[:, block] - images[:, 4:8].mean(axis=1)
            half = 1.96 * heights.std(ddof=1) / np.sqrt(len(heights))
            found = [float(entry[f"{column}_{end}"]) for end in ("low", "high")]
            assert found == pytest.approx([heights.mean() - half, heights.mean() + half], abs=0.2 * half)


def test_each_photograph_alone_has_the_u_under_one_range(kept):
    images = kept["global"]["entropy_images"]
    lowest = images.mean(axis=0).argmin()
    for end in (0, -1):
        assert (images[:, end] > images[:, lowest]).mean() > 0.95
