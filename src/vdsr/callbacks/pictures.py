"""Pictures to look at: bicubic | network | original, a row a scale, PSNR under each."""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster

import matplotlib.pyplot as plt
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vdsr.benchmark import restore
from vdsr.colour import rgb_to_ycbcr, ycbcr_to_rgb
from vdsr.data import Picture, SuperResolutionData
from vdsr.metrics import psnr, quantise
from vdsr.resize import degrade, modcrop
from vdsr.task import SuperResolution
from vdsr.tracking import log_picture

CROP = 96  # pixels of the original that are shown
DPI = 110


class Pictures(pl.Callback):
    """Draws one picture of each benchmark at every validation, for the trackers and `<run>/pictures/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SuperResolution)
        data: SuperResolutionData = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        for shards in data.val_shards:
            path = self.folder / f"{shards.name}.png"
            pixels = draw(pl_module.net, data.pictures(shards)[0], pl_module.scales, pl_module.device, path)
            log_picture(trainer.loggers, f"pictures/{shards.name}", pixels, trainer.global_step)


def draw(
    net: torch.nn.Module, picture: Picture, scales: tuple[float, ...], device: torch.device, path: Path
) -> NDArray[np.uint8]:
    """Bicubic | network | original: see `compare`."""
    return compare(lambda _: {"network": net}, picture, scales, device, path)


def compare(
    networks: Callable[[float], Mapping[str, torch.nn.Module]],
    picture: Picture,
    scales: tuple[float, ...],
    device: torch.device,
    path: Path,
) -> NDArray[np.uint8]:
    """Save the comparison of one picture as PNG (atomically) and return it as (H, W, 3) uint8.

    A row a scale: bicubic, each network for it by name, the original. PSNR is the whole picture's, by the benchmark
    protocol; what is shown is its most detailed part.
    """
    titles = ("bicubic", *networks(scales[0]), "original")
    shape = (len(scales), len(titles))
    figure, axes = plt.subplots(*shape, figsize=(2.4 * shape[1], 2.6 * shape[0]), dpi=DPI, squeeze=False)
    for row, scale in zip(axes, scales, strict=True):
        restored = [restore(net, picture, scale, device) for net in networks(scale).values()]
        ilr, _, hr = restored[0]
        window = _most_detailed(hr)
        for axis, luma, title in zip(row, (ilr, *(sr for _, sr, _ in restored), hr), titles, strict=True):
            axis.imshow(colour(luma, picture.pixels, scale)[window])
            axis.set_xticks([])
            axis.set_yticks([])
            figure_dB = "" if luma is hr else f"  {float(psnr(luma, hr, scale)):.2f} dB"
            axis.set_xlabel(title + figure_dB, fontsize=9)
        row[0].set_ylabel(f"×{scale:g}", fontsize=10)
    figure.suptitle(picture.sample.key, fontsize=10)
    figure.tight_layout()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.png")
    Image.fromarray(pixels).save(temporary)
    temporary.replace(path)
    plt.close(figure)
    return pixels


def colour(luma: Tensor, original: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """(1, 1, H, W) luma in [0, 1] → (H, W, 3) uint8 RGB, its chroma the original's, degraded by bicubic.

    original: the uint8 picture, (H', W', 3) RGB or (H', W') grey, before modcrop. Grey stays grey.
    """
    luma_HW = quantise(luma)[0, 0].nan_to_num().cpu().numpy()  # black where a network diverged
    if original.ndim == 2:
        return np.repeat(luma_HW.astype(np.uint8)[..., None], 3, axis=2)
    chroma = torch.from_numpy(rgb_to_ycbcr(original)).permute(2, 0, 1)[None, 1:].float()
    chroma = degrade(modcrop(chroma, scale), scale)[0].permute(1, 2, 0)
    return ycbcr_to_rgb(np.dstack([luma_HW, chroma.numpy()]))


def _most_detailed(hr: Tensor) -> tuple[slice, slice]:
    """The CROP × CROP window whose luma changes most from pixel to pixel."""
    side = min(CROP, *hr.shape[-2:])
    change = hr.diff(dim=-1).abs()[..., :-1, :] + hr.diff(dim=-2).abs()[..., :-1]
    busy = torch.nn.functional.avg_pool2d(change, max(1, side - 1), stride=8)[0, 0]
    top, left = divmod(int(busy.argmax()), busy.shape[1])
    return slice(top * 8, top * 8 + side), slice(left * 8, left * 8 + side)
