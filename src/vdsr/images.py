"""Bytes of an image file → uint8 pixels, the same for every command that reads an image.

What people's images hold is brought to 8-bit RGB or grey:

- grey (also 1-bit and grey with alpha) stays grey; palettes become RGB
- alpha is dropped, not composited: as `cv2.imread` and the usual super-resolution loaders do
- 16 bits keep their high byte, as Pillow itself does for 16-bit colour
- the EXIF orientation is applied
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vdsr.errors import InputError

EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tiff", "BMP": "bmp"}
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WEBP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
PNG_END = b"IEND\xaeB`\x82"  # Pillow takes a PNG cut off within this last chunk for whole
MAX_PIXELS = 89_478_485  # Pillow's own threshold for suspecting a decompression bomb

TO_RGB = {"RGB", "RGBA", "RGBX", "P", "PA"}
TO_GREY = {"1", "L", "LA"}


def image_format(data: bytes) -> str | None:
    """Pillow's name of the format that the first bytes announce; None if it is not one of the five."""
    name = next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), None)
    return None if name == "WEBP" and data[8:12] != b"WEBP" else name


def decode(data: bytes, name: str) -> NDArray[np.uint8]:
    """PNG, JPEG, WebP, TIFF or BMP bytes → (H, W, 3) RGB or (H, W) grey, uint8 in [0, 255].

    Raises InputError, naming the image `name` and the remedy, when it is empty, not one of the five
    formats, damaged or truncated, animated, in CMYK or another colour space, or absurdly large.
    """
    file = io.BytesIO(data)
    with opened(file, name) as image:
        _refuse_unusable(image, name)
        load(image, file)
        return _to_uint8(ImageOps.exif_transpose(image))


@contextlib.contextmanager
def opened(file: BinaryIO, name: str) -> Iterator[ImageFile.ImageFile]:
    """An image of one of the five formats with only its header read; see `load`.

    Whatever goes wrong before the context ends is an InputError that names the image `name` and the remedy.
    """
    start = file.read(len(max(SIGNATURES, key=len)) + 4)
    if not start:
        raise InputError(f"{name}: is empty (0 bytes); copy or download it again")
    kind = image_format(start)
    if kind is None:
        raise InputError(f"{name}: is not a PNG, JPEG, WebP, TIFF or BMP image; convert it to PNG")
    try:
        with Image.open(file, formats=[kind]) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except InputError:
        raise
    except Exception as error:  # on damaged bytes Pillow's plugins raise nearly anything
        raise InputError(
            f"{name}: does not decode, damaged or truncated ({_one_line(error)}); copy or download it again"
        ) from error


def load(image: ImageFile.ImageFile, file: BinaryIO) -> None:
    """Decode an `opened` image; one that is cut off raises here."""
    image.load()
    if image.format == "PNG" and not _holds(file, PNG_END):
        raise EOFError("the end is missing")


def pixel_checksum(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of decoded (H, W, 3) or (H, W) uint8 pixels as RGB bytes, whatever file format held them.

    For an 8-bit image it equals that of Pillow's `Image.convert("RGB").tobytes()`.
    """
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _refuse_unusable(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    # A phone's JPEG may carry a second picture (MPO: depth, preview); the first is the photograph.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise InputError(f"{name}: is animated or has several pages ({frames}); save the one you want as PNG")
    if image.mode not in TO_RGB | TO_GREY and not image.mode.startswith("I;16"):
        raise InputError(f"{name}: has colour mode {image.mode}; convert it to RGB or grey of 8 or 16 bits")


def _holds(file: BinaryIO, text: bytes) -> bool:
    """Whether that is anywhere in the file, which is not read as a whole."""
    file.seek(0)
    before = b""
    while block := file.read(2**20):
        if text in before + block:
            return True
        before = block[-len(text) :]
    return False


def _to_uint8(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)
    image.info.pop("transparency", None)  # alpha in a PNG's or a palette's own form; dropped like the rest
    return np.array(image.convert("L" if image.mode in TO_GREY else "RGB"))


def _too_large(name: str) -> InputError:
    return InputError(f"{name}: has more than {MAX_PIXELS} pixels; cut it into smaller images")


def _one_line(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text is a memory address
        return "its header is broken"
    return " ".join(str(error).split())[:120] or type(error).__name__
