import io
import os
import struct
import tempfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from vdsr import photos
from vdsr.errors import InputError

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><note>\xc3\xbc</note></x:xmpmeta>'


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data, **options):
    return photos.read(io.BytesIO(data), "p", **options)


def all_of(pixels):
    return pixels.read(slice(0, pixels.height), slice(0, pixels.width))


def written(array, kind, extras=None, quality=95, rows=7):
    """A picture written in strips of so many rows."""
    array = array[..., None] if array.ndim == 2 else array
    strips = (array[top : top + rows] for top in range(0, len(array), rows))
    file = io.BytesIO()
    photos.write(file, kind, strips, array.shape[1], array.shape[0], extras or {}, quality)
    return file.getvalue()


def deep_png(array):
    """A 16-bit PNG without filters, made by hand: (H, W, C)."""
    height, width, channels = array.shape
    lines = array.astype(">u2").reshape(height, -1).view(np.uint8)
    data = zlib.compress(np.pad(lines, ((0, 0), (1, 0))).tobytes())
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))]
    chunks += [(b"IDAT", data), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + cid + d + struct.pack(">I", zlib.crc32(cid + d)) for cid, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# --- pixels ---


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_what_is_written_is_what_pillow_reads(noise, kind, mode):
    image = Image.fromarray(noise(0, 23, 17, colour=True)).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(noise(1, 23, 17)))
    if kind == "WEBP":
        image = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)  # lossy: nothing too fine
    data = written(np.asarray(image), kind, quality=100)
    with Image.open(io.BytesIO(data)) as again:
        assert (again.format, again.size) == (kind, image.size)
        seen = "L" if kind == "WEBP" else image.mode
        wrong = abs(np.asarray(again.convert(seen)).astype(int) - np.asarray(image.convert(seen)))
        assert wrong.mean() < (4 if kind == "WEBP" else 1e-9)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_come_and_go(kind, channels):
    array = np.random.default_rng(channels).integers(0, 65536, (19, 13, channels), dtype=np.uint16)
    if (kind, channels) != ("TIFF", 2):  # read as grey with alpha by hardly anything
        again = read(written(array, kind)).pixels
        assert (again.dtype, again.channels) == (np.uint16, channels)
        assert (all_of(again) == array).all()
    if kind == "PNG":
        assert (all_of(read(deep_png(array)).pixels) == array).all()


def test_a_jpeg_keeps_its_sharp_colours(noise):
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:, ::2] = [255, 0, 0]
    colours[:, 1::2] = [0, 0, 255]
    with Image.open(io.BytesIO(written(colours, "JPEG"))) as again:
        assert abs(np.asarray(again).astype(int) - colours).mean() < 10  # 4:2:0 would mix neighbours
    small, large = (len(written(noise(0, 64, 64), "JPEG", quality=q)) for q in (30, 95))
    assert small < large / 2


def test_sixteen_bits_in_a_jpeg_are_rounded_to_eight():
    array = np.full((16, 16), 40000, np.uint16)
    with Image.open(io.BytesIO(written(array, "JPEG"))) as again:
        assert abs(np.asarray(again).astype(int) - round(40000 / 257)).max() <= 1


def test_palettes_masks_and_transparent_colours(noise):
    picture = Image.fromarray(noise(2, 20, 20, colour=True)).quantize(8)
    assert (all_of(read(encoded(picture, "PNG")).pixels) == np.asarray(picture.convert("RGB"))).all()
    clear = all_of(read(encoded(picture, "PNG", transparency=3)).pixels)
    assert clear.shape[2] == 4
    assert (clear[..., 3] == np.where(np.asarray(picture) == 3, 0, 255)).all()
    mask = picture.convert("1")
    assert (all_of(read(encoded(mask, "PNG")).pixels)[..., 0] == np.asarray(mask) * 255).all()


# --- rotation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "16 bits"])
def test_the_exif_rotation_is_applied_once(noise, orientation, kind):
    array = noise(3, 12, 20, colour=True)
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "Maker"
    if kind == "16 bits":
        data = deep_png(array.astype(np.uint16) * 257)
        chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = data[:33] + chunk + data[33:]
    else:
        data = encoded(Image.fromarray(array), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    photo = read(data)
    found = all_of(photo.pixels)
    assert (found // (257 if kind == "16 bits" else 1) == upright).all()
    assert photo.extras["exif"][271] == "Maker"
    assert 274 not in photo.extras["exif"]


# --- metadata ---


@pytest.mark.parametrize("target", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_profile_exif_xmp_and_resolution_go_along(noise, source, target):
    exif = Image.Exif()
    exif[271], exif[306], exif[274] = "Maker", "2026:11:22 10:00:00", 1
    exif[0x8769] = {0xA002: 20, 0xA003: 12, 0x829A: 0.5, 0x9286: b"ASCII\0\0\0words"}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 15.5)}
    options = {"exif": exif, "icc_profile": PROFILE, "dpi": (300, 200)}
    if source == "PNG":
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        texts.add_text("Title", "Tïtle")
        options["pnginfo"] = texts
    elif source == "TIFF":
        exif[700] = XMP
        options["exif"] = exif.tobytes()  # Pillow's TIFF plugin takes no IFD that is still a dict
    else:
        options["xmp"] = XMP
    photo = read(encoded(Image.fromarray(noise(4, 12, 20, colour=True)), source, **options))
    data = written(np.zeros((24, 40, 3), np.uint8), target, photo.extras)
    with Image.open(io.BytesIO(data)) as again:
        again.load()
        assert again.info["icc_profile"] == PROFILE
        found = again.getexif()
        assert (found[271], found[306]) == ("Maker", "2026:11:22 10:00:00")
        inner = found.get_ifd(0x8769)
        assert (inner[0xA002], inner[0xA003], float(inner[0x829A])) == (40, 24, 0.5)
        assert inner[0x9286] == b"ASCII\0\0\0words"
        assert [float(n) for n in found.get_ifd(0x8825)[2]] == [48.0, 8.0, 15.5]
        assert again.info["xmp"].strip(b"\0") == XMP
        if "WEBP" not in (source, target):  # it has no resolution of its own
            assert again.info["dpi"] == pytest.approx((300, 200), rel=1e-3)
        if source == target == "PNG":
            assert again.text["Title"] == "Tïtle"


def test_a_jpegs_comment_stays():
    photo = read(encoded(Image.new("L", (8, 8)), "JPEG", comment="hello"))
    with Image.open(io.BytesIO(written(np.zeros((8, 8), np.uint8), "JPEG", photo.extras))) as again:
        assert again.info["comment"] == b"hello"


def test_damaged_metadata_do_not_cost_the_picture(noise):
    image = Image.fromarray(noise(5, 9, 9))
    photo = read(encoded(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", icc_profile=b"no profile"))
    assert (all_of(photo.pixels)[..., 0] == np.asarray(image)).all()
    assert len(written(np.zeros((4, 4), np.uint8), "TIFF", photo.extras)) > 0


# --- what cannot be used ---


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is empty"),
        (b"words", "is not a PNG"),
        (encoded(Image.new("RGB", (64, 64)), "JPEG")[:-60], "truncated"),
        (encoded(Image.new("RGB", (64, 64)), "PNG")[:-12], "truncated"),
        (encoded(Image.new("CMYK", (8, 8)), "JPEG"), "CMYK"),
        (encoded(Image.new("L", (8, 8)), "PNG", save_all=True, append_images=[Image.new("L", (8, 8), 9)]), "animated"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "CMYK", "animated"],
)
def test_a_line_that_names_the_picture(data, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        read(data)
    assert str(caught.value).startswith("p: ")
    assert str(caught.value).count("p: ") == 1
    assert "\n" not in str(caught.value)


def test_the_size_is_looked_at_before_anything_is_decoded(noise):
    bomb = encoded(Image.fromarray(noise(6, 4, 4)), "PNG")
    header = b"IHDR" + struct.pack(">II", 12_000, 11_000) + bomb[24:29]
    bomb = bomb[:12] + header + struct.pack(">I", zlib.crc32(header)) + bomb[33:]

    def check(taken):
        raise InputError(f"{taken} bytes")

    with pytest.raises(InputError, match=r"^p: 660000000 bytes$"):
        read(bomb, check=check)
    with pytest.raises(InputError, match="more than 89478485 pixels"):
        read(bomb[:16] + struct.pack(">II", 60_000, 60_000) + bomb[24:29] + struct.pack(">I", zlib.crc32(
            b"IHDR" + struct.pack(">II", 60_000, 60_000) + bomb[24:29])) + bomb[33:])  # fmt: skip


def test_formats_that_cannot_hold_it():
    with pytest.raises(InputError, match=r"transparency, which JPEG cannot hold; set format=png"):
        photos.refuse_unfit("JPEG", 4, 10, 10)
    with pytest.raises(InputError, match=r"16383 a side"):
        photos.refuse_unfit("WEBP", 3, 16_384, 10)
    photos.refuse_unfit("TIFF", 4, 100_000, 10)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is measured on Linux only")
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_strips_take_no_memory_that_grows_with_the_picture(kind):
    import tracemalloc

    strip = np.zeros((64, 4000, 3), np.uint8)
    with tempfile.TemporaryFile() as file:
        tracemalloc.start()
        photos.write(file, kind, (strip for _ in range(60)), 4000, 64 * 60, {}, 95)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * strip.nbytes < 60 * strip.nbytes
