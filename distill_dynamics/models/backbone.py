"""A timm model as the rest of the package sees it: logits and block outputs from one call.

The only file that calls `forward_intermediates`; timm's models are known here and in `models/` alone.
Legend of letters: B batch, C channels, H W grid, L layers, K classes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import timm.data
import timm.models
import torch
from torch import Tensor, nn

from distill_dynamics.errors import UserError
from distill_dynamics.files import whole
from distill_dynamics.models import hub
from distill_dynamics.models.create import architecture, create
from distill_dynamics.models.fitting import load
from distill_dynamics.models.layers import resolve_layers
from distill_dynamics.models.weights import header, read_weights, stated_accuracy


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
        name: timm's model name, `cait_s24_224` for one; `hf-hub:` and `local-dir:` names work too. It may be
            left out where `checkpoint` says what it is of.
        pretrained: take timm's published weights (from the Hugging Face hub, on first use).
        checkpoint: what to take the weights from instead. A folder in timm's hub layout, such as a run's
            `student/`, needs nothing else. Nor do a `.safetensors` of this project and a checkpoint of its
            `fit` (whose student is taken). Of other files, `.safetensors` or a `.pth` such as
            `{"model": state_dict, ...}`, the one set of weights that fits is taken, whatever wraps it
            (averaged ones only where there are no others). Always read with `weights_only`.
            `packaged:NAME` is a file that comes with the package.
        timm_kwargs: keyword arguments of the timm model, `{embed_dim: 64, depth: 12}` for one; plain
            values only, as files have to carry them. With `num_classes` here, a file of another number of
            classes leaves the head fresh.
        mean: what its input is normalised with, for pixels in 0 to 1, a number a channel or one for all; with
            `std`. Left out, what the weights say; and else timm's default, which weights of one's own may
            not have been trained with.
        std: likewise.
        crop_pct: its images are made by resizing the shorter side to size / crop_pct and cropping the centre.
            Left out, as for `mean`. In training the data's holds, for both models.

    Attributes:
        layers: timm's `feature_info` names in depth order: blocks for a ViT, stages for Swin and
            ConvNeXt, the stem and four stages for ResNet; empty where timm has no intermediates.
        channels: channels of each layer.
        mean, std: what this model's input is normalised with, a number a channel.
        evaluation: how its images are resized and cropped; a student of `fit` has its DataModule's.
        has_weights: whether weights were loaded (then `mean` and `std` belong to them).
        normalised_by: where `mean` and `std` are from: "given", the "weights" (their file, or timm's record
            of them), "timm" (its default for the name) or the "data".
        given_crop_pct: whether `crop_pct` was given.
        source: where the weights are from, in words; empty without weights.
        stated_accuracy: top-1 in percent that their file gives for them; None where it gives none.

    Raises:
        UserError: unknown name, unknown timm keyword, weights that cannot be had or do not fit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    evaluation: Evaluation

    def __init__(
        self,
        name: str | None = None,
        pretrained: bool = False,
        checkpoint: str | os.PathLike | None = None,
        timm_kwargs: dict[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_pct: float | None = None,
    ) -> None:
        super().__init__()
        if pretrained and checkpoint:
            raise UserError(f"{name or checkpoint}: give either pretrained: true or a checkpoint, not both")
        given, made_with = _plain(timm_kwargs or {}), {}
        self.has_weights = pretrained or checkpoint is not None
        self.source = "timm's published weights" if pretrained else os.fspath(checkpoint or "")
        self.stated_accuracy: float | None = None
        folder = Path(os.path.expanduser(checkpoint)) if checkpoint else None
        if folder is not None and folder.is_dir():
            config = hub.read_config(folder)
            if name is not None and architecture(name) != config.architecture:
                raise UserError(f"checkpoint: {folder} is of {config.architecture}, and not of {name}")
            self.model = create(f"local-dir:{folder}", True, given)
            told = header(folder / hub.WEIGHTS) if (folder / hub.WEIGHTS).is_file() else {}
            # Ours have the keywords as they were given, too: a cache of this teacher goes by them.
            self.name = told.get("timm_name", config.architecture)
            self.timm_kwargs = _plain({**told.get("timm_kwargs", config.model_args), **given})
            self.stated_accuracy = stated_accuracy(told) or hub.card_accuracy(folder)
        else:
            weights = read_weights(checkpoint) if checkpoint else None
            made_with = weights.description if weights else {}
            name = made_with.get("timm_name") if name is None else name
            if name is None:
                raise UserError(
                    f"{checkpoint} does not say what it is of: give the name of the timm model"
                    if checkpoint
                    else "give the name of a timm model, or as checkpoint a folder in timm's hub layout"
                )
            same = made_with and architecture(made_with["timm_name"]) == architecture(name)
            self.name = name
            self.timm_kwargs = _plain({**made_with["timm_kwargs"], **given}) if same else given
            self.model = create(name, pretrained, self.timm_kwargs)
            if weights:
                load(self.model, weights, name, new_head="num_classes" in given)
                self.stated_accuracy = weights.accuracy

        has_maps = hasattr(self.model, "forward_intermediates")
        info = list(getattr(self.model, "feature_info", [])) if has_maps else []
        self.layers: list[str] = [layer["module"] or f"layer_{i + 1}" for i, layer in enumerate(info)]
        self.channels: list[int] = [layer["num_chs"] for layer in info]
        self.num_classes: int = self.model.num_classes
        self.input_size: tuple[int, int, int] = timm.models.get_model_input_config(self.model)["input_size"]
        timms = timm.data.resolve_data_config({}, model=self.model)
        self.set_normalisation(*((made_with or timms)[key] for key in ("mean", "std")))
        with_record = bool(made_with) or pretrained or (folder is not None and folder.is_dir())
        self.normalised_by = "weights" if with_record else "timm"
        if mean is not None and std is not None:
            self._check_normalisation(mean, std)
            self.set_normalisation(mean, std)
            self.normalised_by = "given"
        elif mean is not None or std is not None:
            raise UserError(f"{self.name}: give both mean and std, or neither")
        own = {"image_size": self.input_size[1:], **{key: timms[key] for key in Evaluation._fields[1:]}}
        own |= made_with.get("evaluation", {})  # files of earlier versions have none
        self.given_crop_pct = crop_pct is not None
        if crop_pct is not None:
            if not 0 < crop_pct <= 1:
                raise UserError(f"{self.name}: crop_pct is a share, above 0 and at most 1, not {crop_pct}")
            own["crop_pct"] = crop_pct
        self.evaluation = Evaluation(**{**own, "image_size": tuple(own["image_size"])})

    def _check_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for key, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, self.input_size[0]):
                raise UserError(
                    f"{self.name}: {key} has {len(values)} numbers for {self.input_size[0]} channels"
                )
            if not all(map(math.isfinite, values)) or (key == "std" and min(values) <= 0):
                raise UserError(f"{self.name}: {key} {list(values)} must be finite, and std positive")
        if max(map(abs, mean)) > 1:
            raise UserError(f"{self.name}: mean {list(mean)} is for pixels in 0 to 1: divide by 255")

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
        # A folder's name is of this machine.
        name = self.model.pretrained_cfg["architecture"] if ":" in self.name else self.name
        return {
            "timm_name": name,
            "timm_kwargs": self._arguments(),
            "mean": list(self.mean),
            "std": list(self.std),
            "evaluation": {**self.evaluation._asdict(), "image_size": list(self.evaluation.image_size)},
        }

    def export_folder(
        self,
        folder: str | os.PathLike,
        label_names: Sequence[str] | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        """Write config.json and model.safetensors into a folder, timm's hub layout.

        `timm.create_model("local-dir:FOLDER", pretrained=True)` makes this model again, and timm's own
        `resolve_data_config` its images; `Backbone(checkpoint=FOLDER)` likewise. `label_names`: of the
        classes in their order; `notes` as for `export`.
        """
        folder = Path(folder)
        self.export(folder / hub.WEIGHTS, notes=notes)
        size, *rest = self.evaluation
        data_config = {
            "input_size": (self.input_size[0], *size),
            "mean": self.mean,
            "std": self.std,
            **dict(zip(Evaluation._fields[1:], rest, strict=True)),
        }
        with whole(folder / hub.CONFIG) as partial:
            hub.write_config(partial, self.model, self._arguments(), data_config, label_names)

    def _arguments(self) -> dict[str, Any]:
        """The keywords that make the model by its architecture, also where `name` is a folder."""
        if ":" not in self.name:
            return self.timm_kwargs
        return _plain(timm.models.get_model_args(self.model, self.timm_kwargs))

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
