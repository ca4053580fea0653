"""A picture's pixels, read part by part: an array's or a Pillow image's, which is never held twice."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdsr.errors import InputError

# What each of Pillow's modes is brought to: its colours as they are, palettes and masks as what they stand for.
PLAIN: Mapping[str, str] = {
    "1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA",
    "I;16": "I;16", "I;16L": "I;16", "I;16B": "I;16",
}  # fmt: skip
PEAKS: Mapping[str, float] = {"uint8": 255, "uint16": 65535, "float16": 1, "float32": 1, "float64": 1}
TRANSPARENT = {"L": "LA", "RGB": "RGBA", "I;16": "I;16"}


def plain(image: Image.Image) -> Image.Image:
    """A Pillow image in one of the modes L, LA, RGB, RGBA and I;16. Raises InputError for other colour spaces."""
    if image.mode not in PLAIN:
        raise InputError(f"has colour mode {image.mode}; convert it to RGB or grey of 8 or 16 bits")
    mode = PLAIN[image.mode]
    if "transparency" in image.info:  # a colour that stands for "nothing here"
        mode = TRANSPARENT.get(mode, mode)
    return image if image.mode == mode else image.convert(mode)


class Pixels:
    """Grey, grey with alpha, RGB or RGBA: an array of (H, W) or (H, W, 1 to 4), or an image of a `plain` mode.

    uint8 and uint16 span their whole range, floats are in [0, 1]. Raises InputError for anything else.
    """

    def __init__(self, source: NDArray[np.generic] | Image.Image) -> None:
        self._source = source
        if isinstance(source, Image.Image):
            self.height, self.width, self.channels = source.height, source.width, len(source.getbands())
            self.dtype = np.dtype(np.uint16 if source.mode == "I;16" else np.uint8)
            self.nbytes = self.height * self.width * (1 if self.channels == 1 else 4) * self.dtype.itemsize
            return
        shape, self.channels = source.shape, source.shape[2] if source.ndim == 3 else 1
        if source.ndim not in (2, 3) or 0 in shape or self.channels > 4 or str(source.dtype) not in PEAKS:
            raise InputError(f"an array of {source.dtype} {shape}: give (H, W) or (H, W, 1 to 4), {', '.join(PEAKS)}")
        self.height, self.width = shape[:2]
        self.dtype, self.nbytes = source.dtype, source.nbytes

    @property
    def peak(self) -> float:
        """The value of full brightness."""
        return PEAKS[str(self.dtype)]

    def read(self, rows: slice, columns: slice) -> NDArray[np.generic]:
        """That part as (h, w, channels)."""
        if isinstance(self._source, Image.Image):
            part = np.asarray(self._source.crop((columns.start, rows.start, columns.stop, rows.stop)))
        else:
            part = self._source[rows, columns]
        return part.reshape(*part.shape[:2], self.channels)
