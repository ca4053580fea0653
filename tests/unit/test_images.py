import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from vdsr.errors import InputError
from vdsr.images import decode, image_format, pixel_checksum

RGB = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RGB[..., 0]
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(data, name="x.png"):
    with pytest.raises(InputError) as caught:
        decode(data, name)
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert "\n" not in text
    assert ";" in text  # the remedy
    return text


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels(kind):
    assert np.array_equal(decode(encode(RGB, kind, **LOSSLESS[kind]), "x"), RGB)
    assert image_format(encode(RGB, kind)) == kind


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_stays_grey(kind):
    pixels = decode(encode(GREY, kind), "x")
    assert pixels.shape == (20, 30)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, GREY)


def test_jpeg_is_what_pillow_decodes():
    data = encode(RGB, "JPEG")
    assert np.array_equal(decode(data, "x"), np.asarray(Image.open(io.BytesIO(data))))
    assert decode(encode(GREY, "JPEG"), "x").shape == (20, 30)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_high_byte(kind):
    values = np.array([[0, 255, 256, 32767], [32768, 65279, 65280, 65535]], dtype=np.uint16)
    pixels = decode(encode(values, kind), "x")
    assert pixels.tolist() == [[0, 0, 1, 127], [128, 254, 255, 255]]


def test_sixteen_bit_colour_keeps_its_high_byte():
    row = b"\0" + struct.pack(">6H", 0, 255, 256, 32768, 65279, 65535)  # two pixels
    chunks = [
        (b"IHDR", struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    assert decode(data, "x").tolist() == [[[0, 0, 1], [128, 254, 255]]]


def test_alpha_is_dropped_not_composited():
    alpha = np.zeros((20, 30, 1), dtype=np.uint8)
    assert np.array_equal(decode(encode(np.concatenate([RGB, alpha], axis=2)), "x"), RGB)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha[..., 0])])
    assert np.array_equal(decode(encode(grey_alpha), "x"), GREY)


def test_palette_becomes_rgb_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    expected = [[[10, 20, 30], [200, 100, 50]]]
    assert decode(encode(palette), "x").tolist() == expected
    assert decode(encode(palette, transparency=b"\x00\x80"), "x").tolist() == expected


def test_one_bit_becomes_black_and_white():
    assert decode(encode(np.array([[True, False]])), "x").tolist() == [[255, 0]]


@pytest.mark.parametrize(("orientation", "turns"), [(6, -1), (3, 2), (8, 1)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RGB, kind, exif=exif, **LOSSLESS[kind])
    assert np.array_equal(decode(data, "x"), np.rot90(RGB, turns))


def test_exif_orientation_of_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = decode(encode(RGB, "JPEG"), "x")
    assert np.array_equal(decode(encode(RGB, "JPEG", exif=exif), "x"), np.rot90(plain, -1))


def test_second_picture_of_a_phone_jpeg_is_ignored():
    second = Image.fromarray(RGB[:10])
    data = encode(RGB, "MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert np.array_equal(decode(data, "x"), decode(encode(RGB, "JPEG", quality=95), "x"))


def test_nothing_is_refused_by_name_only():
    assert np.array_equal(decode(encode(RGB), "holiday.txt"), RGB)


def test_empty():
    assert "empty (0 bytes)" in refusal(b"")


@pytest.mark.parametrize("data", [b"\0", b"not an image", b"RIFF\0\0\0\0WAVEfmt "])
def test_other_files(data):
    assert "is not a PNG, JPEG, WebP, TIFF or BMP" in refusal(data)


def test_gif_is_not_among_the_formats():
    assert "is not a PNG, JPEG, WebP, TIFF or BMP" in refusal(encode(GREY, "GIF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_truncated(kind, kept):
    data = encode(np.tile(RGB, (4, 4, 1)), kind)
    assert "damaged or truncated" in refusal(data[: int(len(data) * kept)])


@pytest.mark.parametrize("missing", [1, 12])
def test_png_that_lacks_only_its_end_is_truncated(missing):
    assert "damaged or truncated (the end is missing)" in refusal(encode(RGB)[:-missing])


def test_pillow_is_left_strict_about_truncation():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_header_only_names_no_memory_address():
    assert "its header is broken" in refusal(b"\xff\xd8\xff" + b"\0" * 50)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_animated_or_paged(kind):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB), Image.fromarray(RGB // 2)]
    assert "(3); save" in refusal(encode(frames[0], kind, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "F"])
def test_other_colour_spaces(mode):
    image = Image.new(mode, (8, 8)) if mode != "CMYK" else Image.fromarray(RGB).convert("CMYK")
    assert f"has colour mode {mode}; convert" in refusal(encode(image, "TIFF"))


def test_cmyk_jpeg():
    assert "has colour mode CMYK" in refusal(encode(Image.fromarray(RGB).convert("CMYK"), "JPEG"))


@pytest.mark.parametrize(("width", "height"), [(9_459, 9_460), (12_000, 12_000), (30_000, 30_000)])
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_from_its_header(width, height):
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    idat = b"IDAT" + zlib.compress(b"\0" * 100)
    data += struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    assert "has more than 89478485 pixels" in refusal(data)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_where_warnings_are_errors():
    header = b"IHDR" + struct.pack(">2I5B", 12_000, 12_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data += struct.pack(">I", 1) + b"IDAT\0" + struct.pack(">I", zlib.crc32(b"IDAT\0"))
    assert "has more than 89478485 pixels" in refusal(data)


def test_pixel_checksum_is_that_of_rgb_bytes():
    assert pixel_checksum(RGB) == hashlib.sha256(RGB.tobytes()).hexdigest()
    converted = Image.fromarray(GREY).convert("RGB").tobytes()
    assert pixel_checksum(GREY) == hashlib.sha256(converted).hexdigest()
    assert pixel_checksum(RGB[:, ::-1]) == hashlib.sha256(RGB[:, ::-1].tobytes()).hexdigest()
    assert pixel_checksum(RGB) != pixel_checksum(RGB[::-1])
