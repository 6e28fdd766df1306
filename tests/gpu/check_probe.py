"""What a probe costs beside the forward pass that it needs."""

from collections.abc import Iterator

import torch
from here import Here, Row

from distill_dynamics import Backbone
from distill_dynamics.dynamics import profile_model


def rows(here: Here) -> Iterator[Row]:
    """CaiT-S24 and 32 images; of a small one 4 images of 28 px."""
    torch.manual_seed(0)
    small = {"img_size": 28, "patch_size": 7, "depth": 2} if here.small else {}
    backbone = Backbone("cait_s24_224", timm_kwargs=small).to(here.device).eval()
    images = torch.randn(4 if here.small else 32, *backbone.input_size, device=here.device)

    @torch.no_grad()
    def forward() -> None:
        backbone(images)

    bare = here.seconds(forward)
    probed = here.seconds(lambda: profile_model(backbone, images))
    what = f"{backbone.name}, {len(images)} images"
    yield Row(f"{what}: forward pass", 1e3 * bare, "ms")
    yield Row(f"{what}: the measures beside it", 1e3 * (probed - bare), "ms", at_most=here.of_gpu(100))
    yield Row(f"{what}: probe ÷ forward pass", probed / bare, "")
