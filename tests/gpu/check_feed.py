"""Images a second from JPEG files, and the way of a batch to the device: as bytes, finished there."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from feeds import drawn, ours, timms, write_images
from here import Here, Row

from distill_dynamics.data.erasing import Box, erase
from distill_dynamics.data.transforms import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def rows(here: Here) -> Iterator[Row]:
    """A batch of 256 images of 224 px, a quarter of them erased by a third of their sides."""
    yield from _from_files(here)
    count, side = (8, 32) if here.small else (256, 224)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    floats = pixels.float()
    if here.is_gpu:
        pixels, floats = pixels.pin_memory(), floats.pin_memory()
    for kind, batch, limit in (("bytes", pixels, 1.5), ("float32", floats, None)):
        taken = here.seconds(lambda batch=batch: batch.to(here.device, non_blocking=True))
        at_most = limit and here.of_gpu(limit)
        yield Row(f"{count} images of {side} px to the device as {kind}", 1e3 * taken, "ms", at_most=at_most)
    there, third = pixels.to(here.device), side // 3
    boxes = [Box(image, 1, 1, third, third) for image in range(0, count, 4)]
    noise = torch.randn(len(boxes) * 3 * third * third, device=here.device)

    def prepare() -> None:
        erase(normalise(there, MEAN, STD), boxes, noise)

    taken = here.seconds(prepare)
    yield Row("normalised and erased there", 1e3 * taken, "ms", at_most=here.of_gpu(0.5))


def _from_files(here: Here) -> Iterator[Row]:
    """The recipe on files of 500 × 375 px in the system's cache, in this process, on one core."""
    count, threads = 8 if here.small else 128, torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 500, 375, count)
        torch.set_num_threads(1)
        taken = {
            make.__name__: here.seconds(drawn(make(Path(folder), min(count, 32), 0)), warm=1, times=3)
            for make in (ours, timms)
        }
        torch.set_num_threads(threads)
    yield Row("recipe, 500 × 375 JPEG, one core", count / taken["ours"], "images/s")
    yield Row("the same ÷ timm's loader", taken["timms"] / taken["ours"], "", at_least=here.of_gpu(0.95))
