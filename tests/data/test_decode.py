"""Decoding: RGB whatever the file, Pillow's pixels however they were decoded, errors that say why."""

import io

import numpy as np
import pytest
from PIL import Image

from dml.data.decode import ImageFile, UnreadableImage, open_rgb


def photograph(height: int, width: int) -> Image.Image:
    """Smooth colours with some grain, as JPEG is made for."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    """CUB, Cars and SOP hold a few grey-scale images; stacking them with others must not fail."""
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 50), 128 * 256, np.uint16))
    else:
        image = Image.new("RGB", (50, 40), (128, 128, 128)).convert(mode)
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png")
    image.save(path)
    rgb = open_rgb(path)
    assert rgb.mode == "RGB"
    if mode not in ("1", "P"):  # these two quantise the grey
        assert abs(np.asarray(rgb).mean() - 128) < 3
    pixels = ImageFile(path).pixels()
    assert pixels.shape == (3, 40, 50)
    np.testing.assert_array_equal(pixels.permute(1, 2, 0), rgb)


def test_a_palette_with_transparency_raises_no_warning(tmp_path, recwarn):
    image = Image.new("P", (40, 40))
    image.info["transparency"] = bytes(range(256))
    image.save(tmp_path / "image.png", transparency=bytes(range(256)))
    assert open_rgb(tmp_path / "image.png").mode == "RGB"
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1, "progressive": True}]
)
@pytest.mark.parametrize("size", [(97, 66), (16, 16), (9, 130)])
def test_jpegs_have_pillows_pixels_bit_for_bit(tmp_path, mode, options, size):
    """Training decodes by another library than evaluation: both must see the same image."""
    path = tmp_path / "image.jpg"
    photograph(*size).convert(mode).save(path, **({} if mode == "L" else options))
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(ImageFile(path).pixels().permute(1, 2, 0), expected)
    np.testing.assert_array_equal(open_rgb(path), expected)


@pytest.mark.parametrize("size", [(480, 640), (333, 257), (31, 900)])
@pytest.mark.parametrize("factor", [0.7, 0.5, 0.4, 0.3, 0.2, 0.13, 0.01])
def test_a_shrunk_jpeg_is_decoded_small_but_large_enough(tmp_path, size, factor):
    """Below the size asked for, the crop would be blown up from pixels that are not there."""
    path = tmp_path / "image.jpg"
    photograph(*size).save(path, quality=90)
    file = ImageFile(path)
    assert (file.height, file.width) == size
    _, height, width = file.pixels(factor).shape
    assert height >= factor * size[0]
    assert width >= factor * size[1]
    eighths = next(n for n in (1, 2, 3, 4, 8) if n / 8 >= factor)
    assert (height, width) == (-(-size[0] * eighths // 8), -(-size[1] * eighths // 8))


def test_a_half_size_jpeg_is_pillows_draft(tmp_path):
    path = tmp_path / "image.jpg"
    photograph(300, 400).save(path)
    draft = Image.open(path)
    draft.draft("RGB", (200, 150))
    np.testing.assert_array_equal(ImageFile(path).pixels(0.5).permute(1, 2, 0), draft)


def test_exif_rotation_is_ignored(tmp_path):
    """As in the published results of these data sets, which were read without it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / "image.jpg"
    photograph(30, 50).save(path, exif=exif)
    assert open_rgb(path).size == (50, 30)
    assert ImageFile(path).pixels().shape == (3, 30, 50)


def damaged(path, kind: str) -> None:
    """Make a file of a kind of damage."""
    buffer = io.BytesIO()
    photograph(60, 80).save(buffer, "PNG" if kind == "short png" else "JPEG")
    data = buffer.getvalue()
    contents = {
        "short jpeg": data[: len(data) // 2],
        "short png": data[: len(data) // 2],
        "header alone": data[:100],
        "text": b"<html>not found</html>",
        "empty": b"",
    }
    if kind != "gone":
        path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    "kind", ["short jpeg", "short png", "header alone", "text", "empty", "gone"]
)
@pytest.mark.parametrize("read", [open_rgb, lambda path: ImageFile(path).pixels()])
def test_unreadable_files_say_why(tmp_path, kind, read):
    """A file that is half there must not become half an image."""
    path = tmp_path / "image.jpg"
    damaged(path, kind)
    with pytest.raises(UnreadableImage, match=r"\w+: \S"):
        read(path)


def test_a_jpeg_that_only_pillow_forgives_is_read(tmp_path):
    """Some photographs on the web carry stray bytes between their parts."""
    path = tmp_path / "image.jpg"
    photograph(60, 80).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"\x00\x11\x22" + data[-2:])
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(ImageFile(path).pixels().permute(1, 2, 0), expected)


def test_an_enormous_image_is_refused(tmp_path, monkeypatch):
    """Pillow's guard against images that fill the memory holds for the other decoder as well."""
    path = tmp_path / "image.jpg"
    photograph(60, 80).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="DecompressionBomb"):
        ImageFile(path).pixels()
