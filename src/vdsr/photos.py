"""Pictures as people keep them: read and written with all that they hold besides 8-bit colours.

Alpha, grey and 16 bits stay; palettes become the colours they stand for; the EXIF rotation is applied; the ICC
profile, EXIF, XMP, resolution and texts are handed on.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vdsr.encoders import Strips, write_png, write_tiff
from vdsr.errors import InputError, about
from vdsr.images import load, opened
from vdsr.pixels import Pixels, plain

KINDS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
SUFFIXES = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff"}
LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
BYTES_READ = {"WEBP": 14}  # a pixel, while it is decoded; 5 with the others' decoders
BYTES_READ_16 = 24  # FFmpeg's picture beside Pillow's and ours
BYTES_WRITTEN = {"PNG": 0, "TIFF": 0, "JPEG": 4, "WEBP": 22}  # a pixel; the first two are written in strips
# What EXIF says of the photograph and not of how it is stored.
DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 33432, 33723)
ORIENTATION, EXIF, GPS, PIXELS_ACROSS, PIXELS_DOWN = 274, 0x8769, 0x8825, 0xA002, 0xA003
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.fliplr(np.rot90(a, -1)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.fliplr(np.rot90(a, 1)),
    8: lambda a: np.rot90(a, 1),
}


class Photo(NamedTuple):
    """A picture's pixels, upright; the format it came in, by Pillow's name; and its metadata."""

    pixels: Pixels
    kind: str
    extras: dict[str, Any]


def read(file: BinaryIO, name: str, check: Callable[[int], object] = lambda taken: None) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF or BMP file.

    check: called with the bytes that decoding it takes, before that is done; may refuse.
    Raises InputError, naming the picture `name`, when it cannot be used.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow's: of damaged metadata, and of sizes, which `check` looks at
        image = stack.enter_context(opened(file, name))
        stack.enter_context(about(name))
        kind = image.format or ""
        if image.format == "MPO":  # a phone's photograph with a second picture: depth, preview
            kind = "JPEG"
        elif (frames := getattr(image, "n_frames", 1)) > 1:
            raise InputError(f"is animated or has several pages ({frames}); save the one you want as PNG")
        deep = any(";16" in str(tile[3]) for tile in image.tile) and not image.mode.startswith("I;16")
        check(image.width * image.height * (BYTES_READ_16 if deep else BYTES_READ.get(kind, 5)))
        orientation = 1
        with contextlib.suppress(Exception):  # a damaged EXIF says nothing of the rotation
            orientation = int(image.getexif().get(ORIENTATION, 1))
        load(image, file)
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        extras = _extras(image)
        if deep:
            return Photo(Pixels(TURNS.get(orientation, np.asarray)(_deep(file, kind))), kind, extras)
        return Photo(Pixels(plain(image)), kind, extras)


def refuse_unfit(kind: str, channels: int, width: int, height: int) -> None:
    """Raises InputError for what a format cannot hold."""
    if kind == "JPEG" and channels in (2, 4):
        raise InputError("has transparency, which JPEG cannot hold; set format=png")
    if max(width, height) > LARGEST_SIDE.get(kind, 2**31 - 1):
        raise InputError(f"{width}×{height} is more than {kind} can hold ({LARGEST_SIDE[kind]} a side); set format=png")


def write(
    file: BinaryIO, kind: str, strips: Strips, width: int, height: int, extras: dict[str, Any], quality: int
) -> None:
    """Write strips from top to bottom; quality: 1 to 100, of JPEG and WebP, which are of 8 bits."""
    exif = extras.get("exif")
    if exif is not None:
        for tag, side in ((PIXELS_ACROSS, width), (PIXELS_DOWN, height)):
            if tag in exif.get(EXIF, {}):
                exif[EXIF][tag] = side
        extras = extras | {"exif": exif.tobytes(), "tags": dict(exif)}
    if kind == "PNG":
        write_png(file, strips, width, height, extras)
    elif kind == "TIFF":
        write_tiff(file, strips, width, height, extras)
    else:
        whole = _gathered(strips, width, height)
        # 4:4:4: what was blurred chroma need not be blurred again
        options = {"subsampling": 0, "comment": extras.get("text", {}).get("Comment")} if kind == "JPEG" else {}
        known = {name: value for name, value in extras.items() if name in ("exif", "icc_profile", "xmp", "dpi")}
        buffer = io.BytesIO()  # Pillow would not say that a disk is full
        try:
            whole.save(buffer, kind, quality=quality, **options, **known)
        except ValueError as error:
            raise InputError(f"its metadata do not fit into {kind} ({error}); set format=png") from None
        file.write(buffer.getbuffer())


def _gathered(strips: Strips, width: int, height: int) -> Image.Image:
    whole, top = None, 0
    for strip in strips:
        if strip.dtype == np.uint16:
            strip = ((strip.astype(np.uint32) + 128) // 257).astype(np.uint8)
        part = Image.fromarray(strip[..., 0] if strip.shape[2] == 1 else strip)
        whole = whole or Image.new(part.mode, (width, height))
        whole.paste(part, (0, top))
        top += len(strip)
    assert whole is not None
    return whole


def _deep(file: BinaryIO, kind: str) -> NDArray[np.uint16]:
    """16-bit colours as (H, W, 2 to 4), by FFmpeg: Pillow keeps only their high byte."""
    import av

    file.seek(0)
    with av.open(file, "r", format={"PNG": "png_pipe", "TIFF": "tiff_pipe"}[kind]) as source:
        frame = next(source.decode(video=0))
    channels = {"ya16": 2, "rgb48": 3, "rgba64": 4}.get(frame.format.name[:-2])
    if channels is None:
        raise InputError(f"has 16-bit colours as {frame.format.name}; save it as PNG of 16 bits")
    plane = frame.planes[0]
    order = ">" if frame.format.name.endswith("be") else "<"
    rows = np.frombuffer(memoryview(plane), f"{order}u2").reshape(frame.height, plane.line_size // 2)
    return rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels).astype(np.uint16)


def _extras(image: Image.Image) -> dict[str, Any]:
    """What is handed on of a picture's metadata; damaged ones are left out."""
    extras: dict[str, Any] = {}
    with contextlib.suppress(Exception):
        old, kept = image.getexif(), Image.Exif()
        for tag in DESCRIPTIVE:
            if tag in old:
                kept[tag] = old[tag]
        for tag in (EXIF, GPS):
            if values := dict(old.get_ifd(tag)):
                kept[tag] = values
        if len(kept) and kept.tobytes():
            extras["exif"] = kept
    with contextlib.suppress(Exception):
        if all(dpi := [float(n) for n in image.info["dpi"]]):
            extras["dpi"] = tuple(dpi)
    for name in ("icc_profile", "xmp"):
        if isinstance(value := image.info.get(name), bytes) and value:
            extras[name] = value
    texts: dict[str, str] = {k: str(v) for k, v in getattr(image, "text", {}).items() if k != "XML:com.adobe.xmp"}
    if isinstance(comment := image.info.get("comment"), bytes):
        texts["Comment"] = comment.decode("utf-8", "replace")
    if texts:
        extras["text"] = texts
    return extras
