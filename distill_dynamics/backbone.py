"""A timm model as the rest of the package sees it: logits and block outputs from one call.

The only file that calls `forward_intermediates`, and the only one that knows timm's models.
Legend of letters: B batch, C channels, H W grid, L layers, K classes.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import json
import os
import re
import textwrap
import traceback
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub
import safetensors
import safetensors.torch
import timm
import timm.data
import timm.models
import torch
from torch import Tensor, nn

from distill_dynamics.errors import UserError
from distill_dynamics.files import whole
from distill_dynamics.layers import resolve_layers

PACKAGED = "packaged:"
"""Prefix of a `checkpoint` that lies in the package itself (`distill_dynamics/weights`)."""


class Features(NamedTuple):
    """What one forward pass gives: `logits` [B, K] or None, and `maps`, a list of [B, C, H, W]."""

    logits: Tensor | None
    maps: list[Tensor]


class Evaluation(NamedTuple):
    """How images are brought to a model's size for evaluation; timm's words (`data.transforms`)."""

    image_size: tuple[int, int]
    """Height and width."""
    crop_pct: float
    """The shorter side is resized to `image_size / crop_pct` first."""
    interpolation: str
    crop_mode: str = "center"
    """What is done with the longer side: "center", "squash" or "border"."""


class Backbone(nn.Module):
    """Any timm model by name, giving logits and block outputs.

    Args:
        name: timm's model name, `cait_s24_224` for one; `hf-hub:` and `local-dir:` names work too.
        pretrained: take timm's published weights (from the Hugging Face hub, on first use).
        checkpoint: a file to take the weights from instead: `.safetensors` (ours carry the timm
            keywords and the normalisation in their metadata, so neither need be given again), a
            checkpoint of this project's `fit` (its student is taken), or a timm-style `.pth`
            (`{"model": state_dict, ...}`; averaged weights in it are left alone). Always read with
            `weights_only`. `packaged:NAME` is a file that comes with the package.
        timm_kwargs: keyword arguments of the timm model, `{embed_dim: 64, depth: 12}` for one; plain
            values only, as files have to carry them.

    Attributes:
        layers: timm's `feature_info` names in depth order: blocks for a ViT, stages for Swin and
            ConvNeXt, the stem and four stages for ResNet; empty where timm has no intermediates.
        channels: channels of each layer.
        mean, std: what this model's input is normalised with, a number a channel.
        evaluation: how its images are resized and cropped; a student of `fit` has its DataModule's.
        has_weights: whether weights were loaded (then `mean` and `std` belong to them).

    Raises:
        UserError: unknown name, unknown timm keyword, weights that cannot be had or do not fit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    evaluation: Evaluation

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        checkpoint: str | os.PathLike | None = None,
        timm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pretrained and checkpoint:
            raise UserError(f"{name}: give either pretrained: true or a checkpoint, not both")
        weights = _read_weights(checkpoint) if checkpoint else None
        made_with = weights.description if weights else {}
        if made_with and _architecture(made_with["timm_name"]) == _architecture(name):
            timm_kwargs = {**made_with["timm_kwargs"], **(timm_kwargs or {})}
        self.name = name
        self.timm_kwargs = _plain(timm_kwargs or {})
        self.has_weights = pretrained or weights is not None
        self.model = _create(name, pretrained, self.timm_kwargs)
        if weights:
            _load(self.model, weights, name)

        has_maps = hasattr(self.model, "forward_intermediates")
        info = list(getattr(self.model, "feature_info", [])) if has_maps else []
        self.layers: list[str] = [layer["module"] or f"layer_{i + 1}" for i, layer in enumerate(info)]
        self.channels: list[int] = [layer["num_chs"] for layer in info]
        self.num_classes: int = self.model.num_classes
        self.input_size: tuple[int, int, int] = timm.models.get_model_input_config(self.model)["input_size"]
        timms = timm.data.resolve_data_config({}, model=self.model)
        self.set_normalisation(*((made_with or timms)[key] for key in ("mean", "std")))
        own = {"image_size": self.input_size[1:], **{key: timms[key] for key in Evaluation._fields[1:]}}
        own |= made_with.get("evaluation", {})  # files of earlier versions have none
        self.evaluation = Evaluation(**{**own, "image_size": tuple(own["image_size"])})

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """State what the input of this model is normalised with: one number a channel.

        Any other number of values is averaged, so that ImageNet's three serve a one-channel model (whose
        pretrained stem is, by timm, the sum of the three colours' weights).
        """
        channels = self.input_size[0]
        self.mean, self.std = _per_channel(mean, channels), _per_channel(std, channels)

    def forward(
        self, images: Tensor, layers: Sequence[int] | Literal["all"] = (), logits: bool = True
    ) -> Features:
        """Run the model once.

        Args:
            images: [B, C_in, H_in, W_in], normalised with this backbone's `mean` and `std`.
            layers: which block outputs to return, numbered from 1 in depth order, negative from the
                end, or "all"; returned in the order asked for. They are taken before the final norm,
                with prefix tokens (class, distillation, register) left out.
            logits: False stops after the deepest layer asked for.

        Returns:
            Features; `logits` is None if not asked for or if the model has no head (`num_classes=0`).

        Raises:
            UserError: a layer that does not exist, or a model without intermediates.
        """
        wanted = [i - 1 for i in self.resolve_layers(layers)]
        head = logits and self.num_classes > 0
        if not wanted:
            return Features(self.model(images) if head else None, [])
        indices = sorted(set(wanted))
        found = self.model.forward_intermediates(
            images, indices=indices, norm=False, stop_early=not head, intermediates_only=not head
        )
        final, maps = found if head else (None, found)
        by_index = dict(zip(indices, maps, strict=True))
        return Features(self.model.forward_head(final) if head else None, [by_index[i] for i in wanted])

    def resolve_layers(self, layers: Sequence[int] | Literal["all"]) -> list[int]:
        """Layer numbers as given by a user → numbers from 1; UserError where one does not exist."""
        if layers and not self.layers:
            raise UserError(
                f"{self.name}: timm gives no intermediate outputs for this model, so its layers can be "
                "neither aligned nor analysed (SoftKD alone works)"
            )
        return resolve_layers(layers, len(self.layers), self.name)

    def check_input(self, channels: int, image_size: int) -> None:
        """UserError if images [B, channels, image_size, image_size] do not fit this model."""
        if channels != self.input_size[0]:
            raise UserError(
                f"{self.name} takes {self.input_size[0]} channels and the images have {channels}; "
                f"set timm_kwargs.in_chans: {channels}"
            )
        fixed = timm.models.get_model_input_config(self.model)["fixed_input_size"]
        if fixed and self.input_size[1:] != (image_size, image_size):
            raise UserError(
                f"{self.name} takes {self.input_size[1]} x {self.input_size[2]} images and the data give "
                f"{image_size} x {image_size}; set timm_kwargs.img_size or data.image_size"
            )

    def blocks(self) -> list[nn.Module]:
        """What runs one after the other and holds most of the parameters, in the order of timm's modules.

        These are the elements of timm's lists of modules (a stage's blocks, where there are stages), finer
        than `layers` for hierarchical models; empty for a model without such lists (RegNet).
        """
        lists = [m for m in self.model.children() if isinstance(m, (nn.Sequential, nn.ModuleList))]
        return [block for modules in lists for block in _blocks(modules)]

    def no_weight_decay(self) -> set[str]:
        """Names (as in `named_parameters`) that the architecture's authors exempt from weight decay."""
        # timm names parameters that this variant may not have, and for XCiT a pattern.
        patterns = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        names = [name for name, _ in self.model.named_parameters()]
        return {f"model.{name}" for name in names if any(fnmatch(name, pattern) for pattern in patterns)}

    def description(self) -> dict[str, Any]:
        """What it takes to build and feed this backbone again, weights aside; plain values."""
        return {
            "timm_name": self.name,
            "timm_kwargs": self.timm_kwargs,
            "mean": list(self.mean),
            "std": list(self.std),
            "evaluation": {**self.evaluation._asdict(), "image_size": list(self.evaluation.image_size)},
        }

    def export(
        self, path: str | os.PathLike, dtype: torch.dtype | None = None, notes: dict[str, Any] | None = None
    ) -> None:
        """Write the weights as safetensors that `Backbone` and plain timm load.

        The metadata hold `description()` and `notes`, each value as JSON. With `dtype` floating
        tensors are stored in it. The file appears whole or not at all.
        """
        state = {}
        for key, value in self.model.state_dict().items():
            stored = dtype if dtype and value.is_floating_point() else value.dtype
            # A copy, because safetensors refuses parameters that two modules share (CoaT has some).
            state[key] = value.to("cpu", stored, copy=True).contiguous()
        metadata = {key: json.dumps(value) for key, value in {**self.description(), **(notes or {})}.items()}
        content = safetensors.torch.save(state, metadata={"format": "pt", **metadata})
        with whole(path) as partial:
            # safetensors' own save_file would let nobody else read the file.
            partial.write_bytes(_in_order(content))


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the library writes them in another order each time.

    The file begins with the length of its header in 8 bytes, and the header, JSON filled up with blanks.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(end - 8) + content[end:]


def _blocks(module: nn.Module) -> list[nn.Module]:
    inner = getattr(module, "blocks", module)  # a stage has its blocks under this name
    if isinstance(inner, (nn.Sequential, nn.ModuleList)):
        return [block for element in inner for block in _blocks(element)]
    return [module] if next(module.parameters(), None) is not None else []


class _Weights(NamedTuple):
    """A state dict and, where its file tells, the `description()` of the backbone it was taken from."""

    path: str
    state: dict[str, Tensor]
    description: dict[str, Any]


def _architecture(name: str) -> str:
    """timm's name without the tag of its pretrained weights."""
    return name.partition(".")[0]


def _plain(timm_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords as a file will give them back: a deep copy, tuples as lists."""
    try:
        return json.loads(json.dumps(timm_kwargs))
    except TypeError as error:
        raise UserError(
            f"timm_kwargs can be numbers, words, lists and dicts, which a file can carry: {error}"
        ) from error


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(float(v) for v in values)
    return (sum(values) / len(values),) * channels


def _create(name: str, pretrained: bool, timm_kwargs: dict[str, Any]) -> Any:
    """timm.create_model, with its errors told in one line."""
    for keyword in sorted({"pretrained", "checkpoint_path", "features_only"} & timm_kwargs.keys()):
        raise UserError(
            f"timm_kwargs: {keyword!r} does not belong there: weights come from pretrained or checkpoint, "
            "block outputs from the call"
        )
    if not re.search(r"[:/\\]", name) and not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{_nearest(_architecture(name), timm.list_models())}")
    from_hub = name.startswith(("hf-hub:", "hf_hub:")) or (pretrained and ":" not in name)
    try:
        with _offline_if_hub_is_out_of_reach() if from_hub else contextlib.nullcontext():
            return timm.create_model(name, pretrained=pretrained, **timm_kwargs)
    except Exception as error:
        reason = textwrap.shorten(str(error), 300).rstrip(".") or type(error).__name__
        unknown = re.search(r"(\w+)\.__init__\(\) got .*unexpected keyword argument[^']*'(\w+)'", reason)
        if unknown and unknown[2] in timm_kwargs:
            nearest = _nearest(unknown[2], _keywords(error, unknown[1]))
            raise UserError(f"timm_kwargs: {name} has no keyword {unknown[2]!r}{nearest}") from error
        if from_hub and isinstance(error, OSError):
            reason += "; without a network, give a checkpoint file"
        weights = " with pretrained weights" if pretrained else ""
        keywords = f" with timm_kwargs {timm_kwargs}" if timm_kwargs else ""
        raise UserError(f"timm cannot make {name}{weights}{keywords}: {reason}") from error


@contextlib.contextmanager
def _offline_if_hub_is_out_of_reach() -> Iterator[None]:
    """Let huggingface_hub look in its cache alone where it has no network.

    By itself it tries twelve times, for 47 seconds, before it says that a file cannot be had.
    """
    constants = huggingface_hub.constants
    offline = constants.HF_HUB_OFFLINE
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _keywords(error: Exception, refused_by: str) -> set[str]:
    """Keywords of the model class timm was building when it failed, and of the class that refused.

    The two differ where a model hands the keywords it does not know to a config class (ByobNet).
    """
    names: set[str] = set()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for builder in (frame.f_locals.get("model_cls"), frame.f_globals.get(refused_by)):
            if callable(builder):
                names |= inspect.signature(builder).parameters.keys()
    return names


def _nearest(word: str, candidates: Collection[str]) -> str:
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_weights(checkpoint: str | os.PathLike) -> _Weights:
    path = os.path.expanduser(checkpoint)
    if path.startswith(PACKAGED):
        name = path.removeprefix(PACKAGED)
        folder = Path(str(resources.files("distill_dynamics"))) / "weights"
        names = sorted(file.stem for file in folder.glob("*.safetensors"))
        if name not in names:
            raise UserError(f"no packaged weights {name!r}; there are: {', '.join(names) or 'none'}")
        path = str(folder / f"{name}.safetensors")
    if not Path(path).is_file():
        raise UserError(f"checkpoint: no such file: {path}")
    return _read_safetensors(path) if path.endswith(".safetensors") else _read_pickle(path)


def _read_safetensors(path: str) -> _Weights:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise UserError(f"checkpoint: {path} is not a whole safetensors file ({error})") from error
    ours = {"timm_name", "timm_kwargs", "mean", "std", "evaluation"} if "timm_name" in metadata else set()
    return _Weights(path, state, {key: json.loads(metadata[key]) for key in ours & metadata.keys()})


def completed_epochs(checkpoint: str | os.PathLike) -> int | None:
    """After how many epochs a file of this project was written, from its content; None for other files."""
    path = os.fspath(checkpoint)
    try:
        if path.endswith(".safetensors"):
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            return json.loads(metadata["epoch"]) if {"timm_name", "epoch"} <= metadata.keys() else None
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped: the weights are not read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damaged or in an older format; whoever loads the weights will say
        return None
    return content["epoch"] + 1 if isinstance(content, dict) and "distill_dynamics" in content else None


def _read_pickle(path: str) -> _Weights:
    # DeiT-style training scripts save their argparse.Namespace beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in any of a dozen ways
            foreign = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds {foreign[1]}" if foreign else "it is damaged or no checkpoint"
            raise UserError(
                f"checkpoint: {path} cannot be read as weights alone: {reason}; save the state_dict as "
                "safetensors instead"
            ) from error
    content = content if isinstance(content, dict) else {}
    if "distill_dynamics" in content:
        student = {
            key.removeprefix("student.model."): value
            for key, value in content["state_dict"].items()
            if key.startswith("student.model.")
        }
        return _Weights(path, student, content["distill_dynamics"]["student"])
    nested = (content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict))
    state = next(nested, content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"checkpoint: {path} holds no state_dict (looked for 'model', 'state_dict', or plain tensors)"
        )
    return _Weights(path, timm.models.clean_state_dict(state), {})


def _load(model: nn.Module, weights: _Weights, name: str) -> None:
    own = model.state_dict()
    problems = [
        f"{key} is {list(weights.state[key].shape)} in the file and {list(value.shape)} in the model"
        for key, value in own.items()
        if key in weights.state and weights.state[key].shape != value.shape
    ]
    problems += [f"{key} is missing" for key in own if key not in weights.state]
    problems += [f"{key} is not in the model" for key in weights.state if key not in own]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        source = weights.description
        made_with = f"; the file is of {source['timm_name']} with {source['timm_kwargs']}" if source else ""
        raise UserError(f"checkpoint: {weights.path} does not fit {name}: {problems[0]}{more}{made_with}")
    model.load_state_dict(weights.state)
