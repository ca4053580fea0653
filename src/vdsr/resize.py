"""MATLAB's imresize on any device, and the degradation HR → ILR of whole images and of patches.

`torch.nn.functional.interpolate(mode="bicubic", antialias=True)` has MATLAB's kernel (a = -0.5,
widened when shrinking) but renormalises at the border where MATLAB mirrors; so mirror first, resize,
crop. Everything is kept on a grid where high and low resolution pixels meet: for a scale p/q every
p HR pixels are q LR pixels.
"""

import functools
import math
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdsr.errors import InputError

LARGEST_SCALE = 8
LARGEST_DENOMINATOR = 10  # one decimal and the usual fractions; keeps modcrop and margins small
REACH = 4  # LR pixels past which a bicubic kernel of either direction has no weight


def parse_scale(scale: Any) -> float:
    """`scale` as a float; a whole number or a simple fraction above 1, at most 8.

    Raises InputError for anything else, naming it.
    """
    try:
        value = float(scale)
        ratio(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"scale {scale!r}: give a whole number or simple fraction above 1, up to {LARGEST_SCALE}: 2, 3 or 2.5"
        ) from None
    return value


@functools.lru_cache(maxsize=64)  # asked for several times a step
def ratio(scale: float) -> Fraction:
    """The scale as the fraction p/q: p HR pixels cover q LR pixels. Raises ValueError, see `parse_scale`."""
    fraction = Fraction(scale).limit_denominator(LARGEST_DENOMINATOR)
    if not 1 < fraction <= LARGEST_SCALE or abs(float(fraction) - scale) > 1e-6:
        raise ValueError(f"no scale: {scale}")
    return fraction


def modcrop(image: Tensor, scale: float) -> Tensor:
    """Cut the last rows and columns of (..., H, W) so that both are multiples of the scale (of p for p/q)."""
    step = ratio(scale).numerator
    height, width = image.shape[-2:]
    return image[..., : height - height % step, : width - width % step]


def imresize(image: Tensor, factor: Fraction) -> Tensor:
    """Resize (B, C, H, W) floats by `factor`, as MATLAB's imresize(…, 'bicubic') does.

    Returns (B, C, ceil(H·factor), ceil(W·factor)) in the same range, unrounded, unclipped.
    Source: MATLAB imresize; Keys 1981 (a = -0.5). Equal to 1e-11 in float64, 3e-3 of a grey level in float32.
    """
    height, width = image.shape[-2:]
    for dim, length in ((-2, height), (-1, width)):
        image = image.index_select(dim, _mirror(_padded(length, factor, image.device), length))
    size = [int(n * factor) for n in image.shape[-2:]]
    resized = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    first = int(_pad(factor) * factor)
    return resized[..., first : first + math.ceil(height * factor), first : first + math.ceil(width * factor)]


@functools.lru_cache(maxsize=16)
def resampling(length: int, factor: Fraction, start: int, stop: int) -> tuple[slice, Tensor]:
    """Rows `start:stop` of `imresize` by `factor`, as a matrix over just the input rows they need.

    length: of the whole input. Returns those rows and (stop - start, their number) float64 weights, the same for
    any window: a picture cut into tiles is the whole one to rounding. For columns, multiply from the right.
    """
    p, q = factor.numerator, factor.denominator
    width = min(factor, Fraction(1))  # the kernel is so much wider where a picture shrinks
    reach = math.ceil(2 / width)
    position = (2 * torch.arange(start, stop) + 1) * q - p  # of the pixels' centres in the input, in 1/2p
    left = torch.div(position, 2 * p, rounding_mode="floor")
    taps = torch.arange(1 - reach, reach + 1)
    distance = ((position - left * 2 * p).double() / (2 * p))[:, None] - taps
    weights = _cubic((distance.abs() * float(width)).clamp(max=2))
    index = _mirror(left[:, None] + taps, length)
    first, last = (int(end) for end in index[weights != 0].aminmax())
    matrix = torch.zeros(stop - start, last + 1 - first, dtype=torch.float64)
    matrix.scatter_add_(1, (index - first).clamp(0, last - first), weights)
    return slice(first, last + 1), matrix / matrix.sum(1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel, a = -0.5, for distances from 0 to 2."""
    return torch.where(x <= 1, (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


def degrade(hr: Tensor, scale: float) -> Tensor:
    """Bicubic down- and upscaling of `hr`: the interpolated low resolution image (ILR).

    hr: (B, C, H, W) floats, H and W multiples of the scale (`modcrop`); returns the same shape and
    range, unrounded. Raises ValueError when H or W is no multiple.
    Source: Kim et al. 2016, section 4.1.
    """
    fraction = ratio(scale)
    if any(n == 0 or n % fraction.numerator for n in hr.shape[-2:]):
        raise ValueError(f"{tuple(hr.shape[-2:])} is no multiple of {fraction.numerator}: modcrop first")
    return imresize(imresize(hr, 1 / fraction), fraction)


def window_size(patch: int, scale: float) -> int:
    """Side, in HR pixels, of the window that holds any `patch` and what degrading it depends on."""
    step = ratio(scale).numerator
    return math.ceil((patch + step - 1) / step) * step + 2 * window_margin(scale)


def window_start(corner: Tensor, scale: float) -> Tensor:
    """First row (or column) of the window of a patch that starts at `corner`: on the LR grid, may be < 0."""
    step = ratio(scale).numerator
    return corner // step * step - window_margin(scale)


def window_pixels(start: Tensor, size: int, length: Tensor) -> Tensor:
    """(n,) starts, (n,) image lengths → (n, size) pixel indices, mirrored at the image's borders."""
    return _mirror(start[:, None] + torch.arange(size, device=start.device), length[:, None])


def window_margin(scale: float) -> int:
    """Pixels on each side of a window that its patches' degradation depends on, and that no patch reaches into."""
    fraction = ratio(scale)
    return math.ceil(REACH / fraction.denominator) * fraction.numerator


def degrade_windows(windows: Tensor, scale: float) -> Tensor:
    """Degrade (n, 1, S, S) float windows cut at `window_start`, m = `window_margin` within: (n, 1, S - 2m, S - 2m).

    A patch of the result equals that patch of the whole degraded image to 1e-13 (float64).
    """
    matrix = _degradation(windows.shape[-1], ratio(scale), window_margin(scale), windows.dtype, windows.device)
    return matrix @ windows @ matrix.mT


@functools.lru_cache(maxsize=16)
def _degradation(size: int, fraction: Fraction, margin: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Down- and upscaling of a row of `size` pixels, as a matrix made in float64: faster than resizing twice."""
    rows = torch.eye(size, dtype=torch.float64)[None, None]
    for target in (int(size / fraction), size):
        rows = F.interpolate(rows, size=[target, size], mode="bicubic", antialias=True, align_corners=False)
    return rows[0, 0, margin:-margin].to(device, dtype)


def _pad(factor: Fraction) -> int:
    """Pixels to mirror before resizing: REACH pixels of the coarser grid, whole on both grids."""
    reach = REACH / min(factor, Fraction(1))
    return math.ceil(reach / factor.denominator) * factor.denominator


def _padded(length: int, factor: Fraction, device: torch.device) -> Tensor:
    pad, step = _pad(factor), factor.denominator
    return torch.arange(-pad, math.ceil(length / step) * step + pad, device=device)


def _mirror(index: Tensor, length: int | Tensor) -> Tensor:
    """Reflect indices at both borders, the edge pixel repeated, as often as needed."""
    index = index % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)
