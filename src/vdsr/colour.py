"""RGB and luma as MATLAB's rgb2ycbcr and ycbcr2rgb have them (ITU-R BT.601, luma in [16, 235])."""

import numpy as np
from numpy.typing import NDArray

LUMA_MIN, LUMA_MAX = 16, 235

# Rows Y, Cb, Cr for RGB in [0, 255]; MATLAB keeps the exact decimals below.
RGB_TO_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
OFFSET = np.array([16.0, 128.0, 128.0])
YCBCR_TO_RGB = np.linalg.inv(RGB_TO_YCBCR)


def rgb_to_ycbcr(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB → (H, W, 3) uint8 YCbCr, rounded as MATLAB's rgb2ycbcr does."""
    return _round(rgb @ RGB_TO_YCBCR.T + OFFSET)


def ycbcr_to_rgb(ycbcr: NDArray[np.floating] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) YCbCr in [0, 255] → (H, W, 3) uint8 RGB, clipped, as MATLAB's ycbcr2rgb does."""
    return _round((ycbcr - OFFSET) @ YCBCR_TO_RGB.T)


def luma(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB or (H, W) grey uint8 → (H, W) uint8 luma.

    A grey image is its own luma (as the benchmarks treat Set14's `bridge`); grey-valued RGB is not.
    """
    if image.ndim == 2:
        return image
    return _round(image @ RGB_TO_YCBCR[0] + OFFSET[0])


def _round(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    # MATLAB rounds halves away from zero; values are positive, so floor(x + 0.5).
    return np.floor(np.clip(values, 0, 255) + 0.5).astype(np.uint8)
