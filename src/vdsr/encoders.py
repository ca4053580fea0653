"""PNG and TIFF written strip by strip, of 8 or 16 bits: a picture of any size takes the memory of one strip.

Pillow needs the whole picture to write it, and has no 16-bit colours.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo, putchunk
from PIL.TiffImagePlugin import ImageFileDirectory_v2

Strips = Iterable[NDArray[np.uint8] | NDArray[np.uint16]]  # (h, W, C) from top to bottom

PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
PAETH = 4
ROWS = 64  # filtered at once
DEFLATE, HORIZONTAL_DIFFERENCES = 8, 2
STRIP_OFFSETS, XMP, ICC_PROFILE = 273, 700, 34675
BYTE, LONG, UNDEFINED = 1, 4, 7


def write_png(file: BinaryIO, strips: Strips, width: int, height: int, extras: Mapping[str, Any]) -> None:
    """Strips as a PNG; extras: `exif`, `icc_profile`, `xmp` (bytes), `dpi` (a pair), `text` (a dict), where given."""
    deflate = zlib.compressobj(6)
    above: NDArray[np.uint8] | None = None
    for strip in strips:
        if above is None:
            channels, depth = strip.shape[2], 8 * strip.itemsize
            file.write(b"\x89PNG\r\n\x1a\n")
            putchunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, depth, PNG_COLOURS[channels], 0, 0, 0))
            for chunk in _png_chunks(extras):
                putchunk(file, *chunk)
            above = np.zeros((1, width * channels * strip.itemsize), np.uint8)
        lines = strip.astype(strip.dtype.newbyteorder(">"), copy=False).reshape(len(strip), -1).view(np.uint8)
        for start in range(0, len(lines), ROWS):
            part = lines[start : start + ROWS]
            filtered = _paeth(part, np.concatenate([above, part[:-1]]), strip.shape[2] * strip.itemsize)
            if data := deflate.compress(filtered.tobytes()):
                putchunk(file, b"IDAT", data)
            above = part[-1:]
    putchunk(file, b"IDAT", deflate.flush())
    putchunk(file, b"IEND")


def _paeth(lines: NDArray[np.uint8], above: NDArray[np.uint8], pixel: int) -> NDArray[np.uint8]:
    """What the prediction from left, above and upper left leaves, each line after its filter's number."""
    a, c = (np.pad(n, ((0, 0), (pixel, 0)))[:, :-pixel].astype(np.int16) for n in (lines, above))
    b = above.astype(np.int16)
    to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    nearest = np.where((to_a <= to_b) & (to_a <= to_c), a, np.where(to_b <= to_c, b, c)).astype(np.uint8)
    return np.concatenate([np.full((len(lines), 1), PAETH, np.uint8), lines - nearest], axis=1)


def _png_chunks(extras: Mapping[str, Any]) -> Iterable[tuple[bytes, bytes]]:
    if profile := extras.get("icc_profile"):
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)
    if dpi := extras.get("dpi"):
        yield b"pHYs", struct.pack(">IIB", *(round(n / 0.0254) for n in dpi), 1)
    if exif := extras.get("exif"):
        yield b"eXIf", exif.removeprefix(b"Exif\0\0")
    info = PngInfo()
    if xmp := extras.get("xmp"):
        info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    for key, text in extras.get("text", {}).items():
        info.add_text(key, text)
    for cid, data, _ in info.chunks:
        yield cid, data


def write_tiff(file: BinaryIO, strips: Strips, width: int, height: int, extras: Mapping[str, Any]) -> None:
    """Strips as a TIFF, compressed without loss; extras as for `write_png`, `tags` in place of `exif`."""
    file.write(b"II" + struct.pack("<HI", 42, 0))  # where the directory is comes last
    offsets, sizes, rows = [], [], 0
    for strip in strips:
        channels, depth, rows = strip.shape[2], 8 * strip.itemsize, rows or len(strip)
        differences = strip.copy()
        differences[:, 1:] -= strip[:, :-1]  # modulo 2⁸ or 2¹⁶
        data = zlib.compress(differences.astype(strip.dtype.newbyteorder("<"), copy=False).tobytes())
        offsets.append(file.tell())
        sizes.append(len(data))
        file.write(data)
        file.write(b"\0" * (len(data) % 2))
    directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    for tag, value in (extras.get("tags") or {}).items():
        directory[tag] = value
    directory[256], directory[257] = width, height
    directory[258] = (depth,) * channels
    directory[259], directory[317] = DEFLATE, HORIZONTAL_DIFFERENCES
    directory[262] = 2 if channels > 2 else 1  # RGB or grey
    directory[277], directory[278] = channels, rows
    directory.tagtype[STRIP_OFFSETS] = LONG
    directory[STRIP_OFFSETS], directory[279] = (0,) * len(offsets), tuple(sizes)
    if channels % 2 == 0:
        directory[338] = 2  # the last channel is alpha, not premultiplied
    for tag, name in ((ICC_PROFILE, "icc_profile"), (XMP, "xmp")):
        if value := extras.get(name):
            directory.tagtype[tag] = BYTE if tag == XMP else UNDEFINED
            directory[tag] = value
    if dpi := extras.get("dpi"):
        directory[282], directory[283], directory[296] = dpi[0], dpi[1], 2
    start = file.tell()
    file.write(_with_offsets(directory.tobytes(start), start, offsets))
    file.seek(4)
    file.write(struct.pack("<I", start))


def _with_offsets(directory: bytes, start: int, offsets: list[int]) -> bytes:
    """Fill in where the strips are: Pillow takes it that they come after the directory."""
    at = next(at for at in range(2, len(directory), 12) if directory[at : at + 2] == struct.pack("<H", STRIP_OFFSETS))
    where = at + 8 if len(offsets) == 1 else struct.unpack_from("<I", directory, at + 8)[0] - start
    values = struct.pack(f"<{len(offsets)}I", *offsets)
    return directory[:where] + values + directory[where + len(values) :]
