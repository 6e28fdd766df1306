"""A backbone as ONNX files: in float32, compared with torch before it is kept, and with weights of 8 bits.

Letters: B batch, C channels, H W image, K classes.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.isolated import isolated

OPSET = 18
"""Of the files: what torch's exporter writes by itself, and onnxruntime reads from 1.14 on."""

TOLERANCE = 1e-4
"""Of the largest difference from torch's answers, as a share of the largest number in them."""

Answer = Callable[[Tensor], Tensor]
"""Logits [B, K], or features [B, D], of images [B, C, H, W]."""


def check_installed() -> None:
    """UserError where the extra `export` is not installed."""
    if any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        raise UserError('ONNX needs more packages: pip install "distill_dynamics[export]"')


def write_onnx(backbone: Backbone, path: Path, label_names: Sequence[str] | None) -> tuple[str, list[int]]:
    """Write `images` [B, C, H, W] float32, normalised with `backbone.mean` and `std`, → `logits` [B, K].

    A model without a head gives `features` [B, D], what a head would read: pooled as timm pools them. B is
    free. Normalisation, crop and class names are in the file's metadata, as JSON. Returns the name of what
    it gives, and its shape without B. UserError for a model that torch cannot export, and where onnxruntime
    answers otherwise than torch.
    """
    gives = "logits" if backbone.num_classes else "features"
    size = backbone.evaluation.image_size
    images = torch.randn(5, backbone.input_size[0], *size, generator=torch.Generator().manual_seed(0))
    with isolated(backbone), _quiet():
        try:
            torch.onnx.export(
                backbone.model,
                (images[:2],),
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=[gives],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # whatever a model does that cannot be traced
            raise UserError(f"ONNX: {backbone.name} cannot be exported: {first_line(error)}") from error
        _describe(path, backbone, label_names)
        answer = answers_of(path)
        for count in (1, 2, 5):
            wanted = backbone.model(images[:count])
            try:
                found = answer(images[:count])
            except Exception as error:  # onnxruntime has classes of its own
                raise UserError(
                    f"ONNX: the file of {backbone.name} does not take {count} images: {first_line(error)}"
                ) from error
            apart = ((wanted - found).abs().max() / wanted.abs().max().clamp(min=1e-6)).item()
            if not apart <= TOLERANCE:
                raise UserError(
                    f"ONNX: for {count} images onnxruntime's {gives} are {apart:.1e} of the largest one away "
                    f"from torch's, more than {TOLERANCE:g}: {backbone.name} is not written as ONNX"
                )
    return gives, [*wanted.shape[1:]]


def answers_of(path: Path) -> Answer:
    """What onnxruntime answers on a CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def write_int8(source: Path, path: Path, calibration: Iterable[Tensor]) -> str:
    """Write a file of `write_onnx` with weights of 8 bits; how it was done, in words.

    The inputs of matrix products are quantised as they come, which no outlier of another image disturbs.
    Where most weights are those of convolutions, for which onnxruntime has no such way on a CPU, activations
    get fixed ranges: those that batches of `calibration`, [B, C, H, W] each, reach.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared")
    with _quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        if _mostly_convolutions(prepared):
            reader: Any = _Reader(calibration)
            quantization.quantize_static(str(prepared), str(path), reader, per_channel=True)
            how = "weights and activations in 8 bits, ranges of activations from training images"
        else:
            products = ["MatMul", "Gemm"]
            quantization.quantize_dynamic(
                str(prepared), str(path), op_types_to_quantize=products, per_channel=True
            )
            how = "matrix products in 8 bits"
    prepared.unlink()
    return how


class _Reader:
    """Calibration batches, as onnxruntime asks for them."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        images = next(self.batches, None)
        return None if images is None else {"images": images.numpy()}


def _mostly_convolutions(path: Path) -> bool:
    import onnx

    graph = onnx.load(path).graph
    sizes = {weight.name: _count(weight.dims) for weight in graph.initializer}
    of = {
        kind: sum(sizes.get(name, 0) for node in graph.node if node.op_type in kind for name in node.input)
        for kind in (("Conv",), ("MatMul", "Gemm"))
    }
    return of["Conv",] > of["MatMul", "Gemm"]


def _count(dims: Iterable[int]) -> int:
    return int(torch.Size(dims).numel())


def _describe(path: Path, backbone: Backbone, label_names: Sequence[str] | None) -> None:
    import onnx

    model = onnx.load(path)
    facts = {**backbone.description(), "label_names": list(label_names or [])}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporter and quantiser say of themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
