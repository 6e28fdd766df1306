"""A timm model as the rest of the package sees it: logits and block outputs from one call.

The only file that calls `forward_intermediates`; timm's models are known in `models/` alone.
Legend of letters: B batch, C channels, H W grid, L layers, K classes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import timm.data
import timm.models
import torch
from torch import Tensor

from distill_dynamics.errors import UserError
from distill_dynamics.models import hub
from distill_dynamics.models.attention import patch_to_patch, seen_attention
from distill_dynamics.models.eval_forms import use_eval_forms
from distill_dynamics.models.eval_transform import EvalTransform, check_normalisation, per_channel
from distill_dynamics.models.features import Features
from distill_dynamics.models.frozen import Freezable
from distill_dynamics.models.input_size import fixed_size
from distill_dynamics.models.layers import resolve_layers
from distill_dynamics.models.readable import check_blocks, check_pooled, check_prefix, single_head
from distill_dynamics.models.save import write_weights
from distill_dynamics.models.source import make, plain


class Backbone(Freezable):
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
        new_head: why its head is none of its weights: "no head" or "other classes"; "" where it is.
        stated_accuracy: top-1 in percent that their file gives for them; None where it gives none.

    Raises:
        UserError: unknown name, unknown timm keyword, weights that cannot be had or do not fit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    evaluation: EvalTransform

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
        source = make(name, pretrained, checkpoint, plain(timm_kwargs or {}))
        self.model = source.model
        use_eval_forms(self.model)
        self.largest_tensors: dict[Any, int] = {}  # of `parts.in_parts`
        self.name, self.timm_kwargs = source.name, source.timm_kwargs
        self.has_weights = pretrained or checkpoint is not None
        self.source = "timm's published weights" if pretrained else os.fspath(checkpoint or "")
        self.stated_accuracy, self.new_head = source.stated_accuracy, source.new_head

        has_maps = hasattr(self.model, "forward_intermediates")
        info = list(getattr(self.model, "feature_info", [])) if has_maps else []
        self.layers: list[str] = [layer["module"] or f"layer_{i + 1}" for i, layer in enumerate(info)]
        self.channels: list[int] = [layer["num_chs"] for layer in info]
        self.num_classes: int = self.model.num_classes
        self.input_size: tuple[int, int, int] = timm.models.get_model_input_config(self.model)["input_size"]
        timms = timm.data.resolve_data_config({}, model=self.model)
        self.set_normalisation(*((source.description or timms)[key] for key in ("mean", "std")))
        self.normalised_by = "weights" if source.is_recorded else "timm"
        if mean is not None and std is not None:
            check_normalisation(self.name, mean, std, self.input_size[0])
            self.set_normalisation(mean, std)
            self.normalised_by = "given"
        elif mean is not None or std is not None:
            raise UserError(f"{self.name}: give both mean and std, or neither")
        own = {"image_size": self.input_size[1:], **{key: timms[key] for key in EvalTransform._fields[1:]}}
        own |= source.description.get("evaluation", {})  # files of earlier versions have none
        self.given_crop_pct = crop_pct is not None
        if crop_pct is not None:
            if not 0 < crop_pct <= 1:
                raise UserError(f"{self.name}: crop_pct is a share, above 0 and at most 1, not {crop_pct}")
            own["crop_pct"] = crop_pct
        self.evaluation = EvalTransform(**{**own, "image_size": tuple(own["image_size"])})

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """State what the input of this model is normalised with: one number a channel.

        Any other number of values is averaged, so that ImageNet's three serve a one-channel model (whose
        pretrained stem is, by timm, the sum of the three colours' weights).
        """
        channels = self.input_size[0]
        self.mean, self.std = per_channel(mean, channels), per_channel(std, channels)

    def forward(
        self,
        images: Tensor,
        layers: Sequence[int] | Literal["all"] = (),
        logits: bool = True,
        *,
        prefix: Sequence[int] = (),
        attention: Sequence[int] = (),
        pooled: bool = False,
        dist_logits: bool = False,
    ) -> Features:
        """Run the model once, as far as it takes.

        Args:
            images: [B, C_in, H_in, W_in], normalised with this backbone's `mean` and `std`.
            layers: which block outputs to return, numbered from 1 in depth order, negative from the
                end, or "all"; returned in the order asked for. They are taken before the final norm,
                with prefix tokens (class, distillation, register) left out.
            logits: False stops after the deepest layer asked for.
            prefix: blocks whose prefix tokens to return.
            attention: those whose attention to return; they run without a fused kernel.
            pooled: return what the classifier reads.
            dist_logits: return the distillation token's logits. In training the `logits` are then the class
                token's alone, as DeiT trains; else, and in evaluation, both are the mean of the two.

        Returns:
            Features; `logits` is None if not asked for or if the model has no head (`num_classes=0`).

        Raises:
            UserError: a layer that does not exist, or a model without what is asked for (`readable.py`).
        """
        of_maps, of_prefix, of_attention = (
            [i - 1 for i in self.resolve_layers(chosen)] for chosen in (layers, prefix, attention)
        )
        head = (logits or dist_logits) and self.num_classes > 0
        if hasattr(self.model, "set_distilled_training"):
            self.model.set_distilled_training(dist_logits)
        indices = sorted({*of_maps, *of_prefix, *of_attention})
        if indices:
            check_blocks(self.model, self.name)
        if prefix:
            check_prefix(self.model, self.name)
        read: Tensor | None = None
        outputs: list[Any] = []
        if not indices and not pooled:
            answer = self.model(images) if head else None
        else:
            with seen_attention(self.model, self.name, [self.layers[i] for i in of_attention]) as seen:
                final, outputs = self._run(images, indices, head or pooled, bool(prefix))
            answer, read = self._answer(final, head, pooled)
        by_index = dict(zip(indices, outputs, strict=True))
        maps = {i: output[0] for i, output in by_index.items()} if prefix else by_index
        of_class, of_dist = answer if isinstance(answer, tuple) else (answer, answer)
        features = Features(of_class if logits else None, [maps[i] for i in of_maps])
        features.pooled = read
        features.dist_logits = of_dist if dist_logits else None
        if prefix:
            features.prefix = [by_index[i][1] for i in of_prefix]
        if attention:
            tokens = int(getattr(self.model, "num_prefix_tokens", 0))
            of_layer = functools.partial(patch_to_patch, seen, self.name, tokens)
            features.attention = [of_layer(self.layers[i], maps[i]) for i in of_attention]
        return features

    def _run(
        self, images: Tensor, indices: list[int], to_the_end: bool, prefix: bool
    ) -> tuple[Any, list[Any]]:
        """What the head is given, None if it is not reached; and the blocks' outputs."""
        if not indices:
            return self.model.forward_features(images), []
        outputs = self.model.forward_intermediates(
            images,
            indices=indices,
            norm=False,
            stop_early=not to_the_end,
            intermediates_only=not to_the_end,
            **({"return_prefix_tokens": True} if prefix else {}),
        )
        return outputs if to_the_end else (None, outputs)

    def _answer(self, final: Tensor | None, head: bool, pooled: bool) -> tuple[Any, Tensor | None]:
        """Logits, two where both tokens have some; and what the classifier reads."""
        read = check_pooled(self.model.forward_head(final, pre_logits=True), self.name) if pooled else None
        classifier = single_head(self.model) if pooled and head else None
        if classifier is not None:
            return classifier(read), read  # not forward_head again, which would draw its dropout anew
        return self.model.forward_head(final) if head else None, read

    def resolve_layers(self, layers: Sequence[int] | Literal["all"]) -> list[int]:
        """Layer numbers as given by a user → numbers from 1; UserError where one does not exist."""
        if layers and not self.layers:
            raise UserError(
                f"{self.name}: timm gives no intermediate outputs for this model, so its layers can be "
                "neither aligned nor analysed (SoftKD alone works)"
            )
        return resolve_layers(layers, len(self.layers), self.name)

    def check_input(self, channels: int, image_size: int) -> None:
        """UserError if images [B, channels, image_size, image_size] do not fit this model; grey fits RGB."""
        if (channels, self.input_size[0]) != (1, 3) and channels != self.input_size[0]:
            raise UserError(
                f"{self.name} takes {self.input_size[0]} channels and the images have {channels}; "
                f"set timm_kwargs.in_chans: {channels}"
            )
        if fixed_size(self) not in (None, (image_size, image_size)):
            raise UserError(
                f"{self.name} takes {self.input_size[1]} x {self.input_size[2]} images and the data give "
                f"{image_size} x {image_size}; set timm_kwargs.img_size or data.image_size"
            )

    def no_weight_decay(self) -> set[str]:
        """Names (as in `named_parameters`) that the architecture's authors exempt from weight decay."""
        # timm names some that this variant may not have, and for XCiT a pattern.
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
        size, *rest = self.evaluation
        data_config = {
            "input_size": (self.input_size[0], *size),
            "mean": self.mean,
            "std": self.std,
            **dict(zip(EvalTransform._fields[1:], rest, strict=True)),
        }
        self.export(Path(folder) / hub.WEIGHTS, notes=notes)
        hub.write_config(Path(folder), self.model, self._arguments(), data_config, label_names)

    def export(
        self, path: str | os.PathLike, dtype: torch.dtype | None = None, notes: dict[str, Any] | None = None
    ) -> None:
        """Write the weights as safetensors that `Backbone` and plain timm load.

        The metadata hold `description()` and `notes`, each value as JSON. With `dtype` floating
        tensors are stored in it. The file appears whole or not at all.
        """
        write_weights(path, self.model.state_dict(), {**self.description(), **(notes or {})}, dtype)

    def _arguments(self) -> dict[str, Any]:
        """The keywords that make the model by its architecture, also where `name` is a folder."""
        if ":" not in self.name:
            return self.timm_kwargs
        return plain(timm.models.get_model_args(self.model, self.timm_kwargs))
