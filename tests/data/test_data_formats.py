"""What is decoded: the formats that people train on, by content, and nothing else."""

import io
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from distill_dynamics.data.sources import FileSource, UnreadableImage

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def in_format(form: str, **settings) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, form, **settings)
    return file.getvalue()


def read(folder: Path, content: bytes, name: str = "x.png") -> Image.Image:
    (folder / name).write_bytes(content)
    return FileSource(folder, [name], [0]).image(0)


def test_an_eps_file_that_is_called_a_png_starts_no_ghostscript(tmp_path, monkeypatch):
    started = tmp_path / "started"
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(gs))
    content = in_format("EPS")
    with pytest.raises(UnreadableImage, match=r"x.png: no image in JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM$"):
        read(tmp_path, content)
    assert not started.exists()
    with pytest.raises(Exception, match=r"."):  # what Pillow does where it is not told the formats
        Image.open(tmp_path / "x.png").load()
    assert started.exists()


@pytest.mark.parametrize("form", ["PDF", "ICO", "PCX", "TGA", "SGI", "ICNS", "DDS", "IM", "SPIDER"])
def test_what_nobody_trains_on_is_refused_whatever_it_is_called(tmp_path, form):
    content = in_format(form) if form != "SPIDER" else b"\0" * 4096
    with pytest.raises(UnreadableImage, match=r"x.png: no image in"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        *(in_format(form) for form in ("PNG", "BMP", "GIF", "TIFF", "PPM")),
        in_format("WEBP", lossless=True),
        in_format("JPEG", quality=100),
        in_format("JPEG", progressive=True),
        in_format("MPO", save_all=True, append_images=[Image.fromarray(PIXELS)]),  # a telephone's
        *(in_format("TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
    ],
)
def test_what_is_trained_on_is_read_by_its_content(tmp_path, content):
    image = read(tmp_path, content, "x.jpg")
    assert np.array_equal(image, Image.open(io.BytesIO(content)).convert("RGB"))


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    header = bytearray(in_format("BMP"))
    header[18:26] = (40_000).to_bytes(4, "little") * 2
    with pytest.raises(UnreadableImage, match=r"x.png: Image size .* exceeds limit"):
        read(tmp_path, bytes(header))
    with pytest.raises(UnreadableImage, match=r"x.png: .*exceeds limit"):
        read(tmp_path, b"P6 40000 40000 255 ")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_no_altered_file_is_more_than_an_unreadable_image(tmp_path, form):
    generator, content = np.random.default_rng(0), in_format(form)
    for _ in range(150):
        altered = bytearray(content)
        for place in generator.integers(0, min(len(content), 200), generator.integers(1, 10)):
            altered[place] = generator.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(UnreadableImage):
                read(tmp_path, bytes(altered))


def test_whatever_a_decoder_raises_is_a_line(tmp_path, monkeypatch):
    def raises(*args, **kwargs):
        raise OverflowError("Python int too large to convert to C ssize_t")

    monkeypatch.setattr(Image.Image, "convert", raises)  # seen of an altered TIFF
    with pytest.raises(UnreadableImage, match=r"x.png: Python int too large"):
        read(tmp_path, in_format("TIFF"))
