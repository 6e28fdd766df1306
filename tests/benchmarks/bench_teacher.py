"""A teacher's answers beside timm's model as it comes, in float32 and in bfloat16."""

from collections.abc import Iterator

import timm
import torch
from table import Row, row
from turns import by_turns

from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.features import LOGITS
from distill_dynamics.models.teacher import Teacher


def rows(small: bool) -> Iterator[Row]:
    """16 images of 224 px, logits; of the small variant three blocks and four images of 28 px.

    A process that has not trained yet asks the system for the memory of large tensors in every layer; after
    a step it keeps what it had. The first is a cache's build, `analyze` and `validate`; the second is `fit`.
    """
    kwargs, count, rounds = {}, 16, 9
    if small:
        kwargs, count, rounds = {"img_size": 28, "patch_size": 4, "embed_dim": 24, "depth": 3}, 4, 2
    for name, aims in (("cait_s24_224", (0.7, 0.35)), ("deit_small_patch16_224", (None, None))):
        torch.manual_seed(0)
        backbone = Backbone(name, timm_kwargs=kwargs)
        model = timm.create_model(name, **kwargs).eval().requires_grad_(False)
        model.load_state_dict(backbone.model.state_dict())
        exact, half = Teacher(backbone), Teacher(backbone, "bf16-mixed")
        images = torch.randn(count, *backbone.input_size)

        @torch.no_grad()
        def timms(model=model, images=images) -> None:
            model(images)

        contestants = [timms, *(lambda t=t, x=images: t.read(x, {LOGITS}) for t in (exact, half))]
        for state in ("", ", after a training step"):
            if state:
                student = timm.create_model("deit_tiny_patch16_224", **kwargs)
                student(images).sum().backward()
            timed, ours, ours_half = by_turns(contestants, rounds)
            what = f"{name}, {count} images{state}: teacher's forward"
            yield row(f"{what} ÷ timm's", ours, timed, aims[0], unit="s")
            if torch.cpu._is_avx512_bf16_supported() or small:  # elsewhere bfloat16 is emulated
                yield row(f"{what} in bfloat16 ÷ timm's in float32", ours_half, timed, aims[1], unit="s")
