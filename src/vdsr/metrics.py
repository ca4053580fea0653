"""PSNR and SSIM as the paper's benchmark takes them (clip, round, shave), over torchmetrics.

Protocol: modcrop, degrade in floats, network, clip to [16, 235], round to 8 bits, shave ⌈scale⌉
pixels, peak 255; mean over the images of a set. Source: the evaluation code of Kim et al. and the
benchmarks it was compared on (Timofte et al. 2014); SSIM: Wang et al. 2004.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vdsr.colour import LUMA_MAX, LUMA_MIN
from vdsr.errors import InputError
from vdsr.resize import ratio

SSIM_WINDOW = 11
SSIM_TILE = 64  # windows a side


class Score(NamedTuple):
    """PSNR in dB and SSIM of one image, or their means over a set."""

    psnr: float
    ssim: float


def quantise(luma: Tensor) -> Tensor:
    """Luma in [0, 1] → whole grey levels in [16, 235], in float64."""
    return (luma.double() * 255).clamp(LUMA_MIN, LUMA_MAX).round()


def check_size(height: int, width: int, scale: float, name: str) -> None:
    """Raises InputError when an image leaves less than SSIM's 11 × 11 window inside the border."""
    step = ratio(scale).numerator
    left = min(height - height % step, width - width % step) - 2 * math.ceil(scale)
    if left < SSIM_WINDOW:
        raise InputError(
            f"{name} ({width}×{height}) is too small to be scored at ×{scale:g}: leave it out of the benchmark"
        )


def psnr_ssim(sr: Tensor, hr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Benchmark PSNR (dB) and SSIM of one image, as float64 scalars on its device.

    sr: (1, 1, H, W) network output in [0, 1], not yet clipped; hr: (1, 1, H, W) in [0, 1], 8-bit values.
    Raises InputError when less than SSIM's 11 × 11 window is left inside the border.
    """
    sr, hr = _inside(sr, hr, scale)
    return peak_signal_noise_ratio(sr, hr, data_range=255.0), _ssim(sr, hr)


def psnr(sr: Tensor, hr: Tensor, scale: float) -> Tensor:
    """The PSNR of `psnr_ssim` alone, at a fraction of the cost."""
    return peak_signal_noise_ratio(*_inside(sr, hr, scale), data_range=255.0)


def _inside(sr: Tensor, hr: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Both in whole grey levels, less the border, which lacks full context; float64, or SSIM's variances cancel."""
    check_size(hr.shape[-2], hr.shape[-1], scale, "an image")
    shave = math.ceil(scale)
    inside = (..., slice(shave, -shave), slice(shave, -shave))
    return quantise(sr)[inside], (hr.double() * 255).round()[inside]


def _ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean over the windows that lie inside the image; torchmetrics' own mean takes in a mirrored border.

    Tile by tile: the same windows, a quarter of the time, and memory that does not grow with the image.
    """
    total = torch.zeros((), dtype=torch.float64, device=hr.device)
    overlap = SSIM_WINDOW - 1
    rows, columns = (n - overlap for n in hr.shape[-2:])
    for top in range(0, rows, SSIM_TILE):
        for left in range(0, columns, SSIM_TILE):
            tile = (..., slice(top, top + SSIM_TILE + overlap), slice(left, left + SSIM_TILE + overlap))
            _, ssim_map = structural_similarity_index_measure(
                sr[tile], hr[tile], sigma=1.5, kernel_size=SSIM_WINDOW, data_range=255.0, return_full_image=True
            )
            half = SSIM_WINDOW // 2
            total += ssim_map[..., half:-half, half:-half].sum()
    return total / (rows * columns)


class BenchmarkScore(Metric):
    """Mean of the images' PSNR and SSIM (not the PSNR of the mean error); summed exactly over ranks."""

    higher_is_better = True
    full_state_update = False
    psnr: Tensor
    ssim: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("psnr", "ssim", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, sr: Tensor, hr: Tensor, scale: float) -> None:
        """Add one image; shapes and ranges as in `psnr_ssim`."""
        psnr, ssim = psnr_ssim(sr, hr, scale)
        self.psnr += psnr
        self.ssim += ssim
        self.count += 1

    def compute(self) -> Score:
        """The means over all images of all ranks."""
        return Score(float(self.psnr / self.count), float(self.ssim / self.count))
