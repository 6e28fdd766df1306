"""Weights from files of this project and from timm's hub, and the files that it writes."""

import argparse
import json
import os
import pickle
import time
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import timm.optim
import torch
from test_backbone import DEIT, TOKENS, deit, error_of, same_weights, shaken

from distill_dynamics.models.backbone import Backbone

# --- weights from files


def save(content, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


WRAPPERS = {
    "plain.safetensors": lambda state, other: state,
    "plain.pth": lambda state, other: state,
    "model.pth": lambda state, other: {
        "model": state,
        "model_ema": other,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, model="x", drop=None),
    },
    "state_dict.pth": lambda state, other: {"state_dict": state, "state_dict_ema": other, "arch": "x"},
    "ddp.pth": lambda state, other: {"model": {f"module.{key}": value for key, value in state.items()}},
    "compiled.pth": lambda state, other: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "lightning.ckpt": lambda state, other: {
        "distill_dynamics": {
            "student": {"timm_name": DEIT, "timm_kwargs": TOKENS, "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]},
            "teacher_accuracy": None,
        },
        "state_dict": {
            **{f"student.model.{key}": value for key, value in state.items()},
            **{f"terms.projector.model.{key}": value for key, value in other.items()},
        },
        "epoch": 3,
    },
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_weights_are_read_from(kind, tmp_path):
    source = shaken(timm.create_model(DEIT, **TOKENS))
    other = timm.create_model(DEIT, **TOKENS).state_dict()
    path = save(WRAPPERS[kind](source.state_dict(), other), tmp_path / kind)
    # Lightning's checkpoint of ours needs no keywords.
    backbone = Backbone(DEIT, checkpoint=path, timm_kwargs=None if kind == "lightning.ckpt" else TOKENS)
    assert same_weights(backbone.model, source)
    assert backbone.has_weights
    assert backbone.mean == ((0.1, 0.2, 0.3) if kind == "lightning.ckpt" else (0.485, 0.456, 0.406))
    assert backbone.std == ((1, 2, 3) if kind == "lightning.ckpt" else (0.229, 0.224, 0.225))


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_malicious_pickle_does_not_run(tmp_path):
    target, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"model": deit().model.state_dict(), "args": Evil(target)}, path)
    message = error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    assert str(path) in message
    assert ".system" in message
    path.write_bytes(pickle.dumps(Evil(target), protocol=2))
    assert str(path) in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert target.exists()


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_damaged_file_is_one_line(kind, tmp_path):
    whole = save(deit().model.state_dict(), tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"damaged.{kind}"
    for content in (b"", b"hello", whole[:4], whole[:40], whole[: len(whole) // 2], whole[:-4]):
        path.write_bytes(content)
        assert str(path) in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)


def test_a_damaged_old_style_pickle_is_one_line(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(deit().model.state_dict(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in range(0, 200, 7):
        path.write_bytes(whole[:length])
        assert str(path) in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)


def test_a_file_without_weights_is_one_line(tmp_path):
    for content in ({"epoch": 3}, {}, [1, 2], torch.zeros(2), {"model": {"optimizer": {"lr": 1.0}}}):
        path = save(content, tmp_path / "other.pth")
        message = error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
        assert str(path) in message
        assert "state_dict" in message


def test_a_missing_file_is_one_line(tmp_path):
    assert "no such file" in error_of(DEIT, checkpoint=tmp_path / "none.safetensors")
    assert "a folder without config.json" in error_of(DEIT, checkpoint=tmp_path)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = deit()
    source.export(tmp_path / "x.safetensors")
    assert same_weights(Backbone(DEIT, checkpoint="~/x.safetensors"), source)


def test_pretrained_and_checkpoint_exclude_each_other():
    assert "not both" in error_of(DEIT, pretrained=True, checkpoint="x.safetensors")


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_that_does_not_fit(kind, tmp_path):
    state = timm.create_model(DEIT, **TOKENS).state_dict()
    path = tmp_path / f"x.{kind}"

    save({**state, "head.bias": torch.zeros(9)}, path)
    message = error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    assert str(path) in message
    assert "head.bias is [9] in the file and [5] in the model" in message

    save({key: value for key, value in state.items() if key != "norm.bias"}, path)
    assert message.split(":")[0] == "checkpoint"
    assert "norm.bias is missing" in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)

    save({**state, "extra": torch.zeros(1)}, path)
    assert "extra is not in the model" in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)

    save(state, path)
    others = {key: value for key, value in TOKENS.items() if key != "num_classes"}
    message = error_of(DEIT, checkpoint=path, timm_kwargs=others)
    assert "head.weight is [5, 16] in the file and [1000, 16] in the model (and 1 more)" in message


def test_packaged_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("distill_dynamics.models.weights.resources.files", lambda package: tmp_path)
    assert "none" in error_of(DEIT, checkpoint="packaged:small")
    source = deit()
    source.export(tmp_path / "weights" / "small.safetensors")
    assert same_weights(Backbone(DEIT, checkpoint="packaged:small"), source)
    message = error_of(DEIT, checkpoint="packaged:smal")
    assert "'smal'" in message
    assert "small" in message.split("there are:")[1]


# --- export


def test_an_export_is_loaded_by_name_and_checkpoint_alone(tmp_path):
    source = deit(in_chans=1)
    source.set_normalisation([0.25], [0.5])
    path = tmp_path / "new" / "x.safetensors"
    source.export(path)
    for name in (DEIT, f"{DEIT}.fb_in1k"):  # a tag of pretrained weights makes no other architecture
        backbone = Backbone(name, checkpoint=path)
        assert same_weights(backbone, source)
        assert (backbone.mean, backbone.std, backbone.input_size) == ((0.25,), (0.5,), (1, 28, 42))
    assert backbone.timm_kwargs == {**TOKENS, "in_chans": 1}


def test_an_export_is_loaded_by_plain_timm(tmp_path):
    source = deit()
    source.export(tmp_path / "x.safetensors", notes={"accuracy": 90.5, "commit": None})
    plain = timm.create_model(DEIT, checkpoint_path=str(tmp_path / "x.safetensors"), **TOKENS)
    assert same_weights(plain, source.model)
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "format"}
    assert {key: json.loads(value) for key, value in metadata.items()} == {
        "timm_name": DEIT,
        "timm_kwargs": TOKENS,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "evaluation": {
            "image_size": [28, 42],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "crop_mode": "center",
        },
        "accuracy": 90.5,
        "commit": None,
    }


def test_a_float16_export_is_loaded_into_float32(tmp_path):
    source, path = shaken(Backbone("test_resnet")), tmp_path / "x.safetensors"
    source.export(path, dtype=torch.float16)
    stored = safetensors.torch.load_file(path)
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.int64}  # batch norm counts
    assert path.stat().st_size < 0.6 * sum(p.numel() * 4 for p in source.parameters())
    loaded = Backbone("test_resnet", checkpoint=path)
    for a, b in zip(loaded.parameters(), source.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.half().float())


def test_explicit_keywords_win_over_those_of_the_file(tmp_path):
    source = deit(drop_path_rate=0.1)
    source.export(tmp_path / "x.safetensors")
    backbone = Backbone(DEIT, checkpoint=tmp_path / "x.safetensors", timm_kwargs={"drop_path_rate": 0.3})
    assert backbone.timm_kwargs == {**TOKENS, "drop_path_rate": 0.3}
    assert backbone.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


def test_an_export_of_another_model_says_what_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    deit().export(path)
    message = error_of("cait_xxs24_224", checkpoint=path, timm_kwargs=TOKENS)
    assert "does not fit cait_xxs24_224" in message
    assert f"the file is of {DEIT} with" in message
    assert "'embed_dim': 16" in message


def test_parameters_that_two_modules_share_are_exported(tmp_path):
    timm_kwargs = {"embed_dims": [8] * 4, "serial_depths": [1] * 4, "num_classes": 2, "img_size": 32}
    source, path = Backbone("coat_lite_tiny", timm_kwargs=timm_kwargs), tmp_path / "x.safetensors"
    source.export(path)
    assert same_weights(Backbone("coat_lite_tiny", checkpoint=path), source)


def test_an_export_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    source = deit()
    source.export(path)
    before = path.read_bytes()
    write = Path.write_bytes

    def full_disk(self, data):
        write(self, data[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        shaken(source).export(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

    written = []
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (written.append(self), write(self, data)))
    source.export(path)
    assert path not in written
    assert path.read_bytes() != before


def test_an_export_can_be_read_by_those_who_can_read_other_files(tmp_path):
    (tmp_path / "other").touch()
    deit().export(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


# --- weights from timm's hub


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty cache, and a hub where every connection is refused."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["test_vit", "test_vit.r160_in1k", "hf-hub:timm/test_vit.r160_in1k"])
def test_pretrained_without_a_network_is_one_line_and_soon(no_network, name):
    start = time.monotonic()
    message = error_of(name, pretrained=True)
    assert time.monotonic() - start < 10
    assert name in message
    assert "pretrained" in message
    assert message.endswith("without a network, give a checkpoint file, or pretrained: false")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # as it was


def test_pretrained_weights_in_the_cache_need_no_network(no_network):
    source = shaken(timm.create_model("test_vit"))
    folder = no_network / "models--timm--test_vit.r160_in1k"
    commit = 40 * "a"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    save(source.state_dict(), folder / "snapshots" / commit / "model.safetensors")
    backbone = Backbone("test_vit", pretrained=True)
    assert same_weights(backbone.model, source)
    assert backbone.has_weights
    # timm's own message here has a line for each weight
    message = error_of("test_vit", pretrained=True, timm_kwargs={"embed_dim": 32})
    assert "test_vit with pretrained weights" in message
    assert "size mismatch" in message


def test_pretrained_weights_that_do_not_exist(no_network):
    assert "No pretrained weights exist" in error_of("vit_small_patch16_36x1_224", pretrained=True)


def test_a_model_in_a_local_folder(tmp_path):
    source = timm.create_model(DEIT, **TOKENS)
    shaken(source)
    timm.models.save_for_hf(source, str(tmp_path), model_args=TOKENS)
    backbone = Backbone(f"local-dir:{tmp_path}", pretrained=True)
    assert same_weights(backbone.model, source)
    assert backbone.input_size == (3, 28, 42)
    assert len(backbone.layers) == 3
