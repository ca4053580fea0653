"""One benchmark image through a network; a whole benchmark as rows."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vdsr.data import Picture
from vdsr.metrics import psnr_ssim
from vdsr.resize import degrade, modcrop
from vdsr.tiles import upscale

TIMED = 5  # images: as many as Set5 has


class Restored(NamedTuple):
    """(1, 1, H, W) float32 luma in [0, 1]: the input, the output and the original, cut to the scale."""

    ilr: Tensor
    sr: Tensor
    hr: Tensor


@dataclass(frozen=True)
class Row:
    """One image at one scale: PSNR in dB and SSIM on luma, of the network and of bicubic."""

    set: str
    image: str
    scale: float
    psnr: float
    ssim: float
    bicubic_psnr: float
    bicubic_ssim: float


@torch.inference_mode()
def restore(net: nn.Module, picture: Picture, scale: float, device: torch.device) -> Restored:
    """Degrade a picture's luma by `scale` and give it to the network, in float32."""
    hr = modcrop(picture.hr.to(device), scale)
    ilr = degrade(hr, scale)
    with torch.autocast(device.type, enabled=False):
        return Restored(ilr, upscale(net, ilr), hr)


@torch.inference_mode()
def seconds_per_image(net: nn.Module, pictures: Sequence[Picture], device: torch.device) -> float:
    """What the network alone takes for an image in float32: the mean over the first `TIMED`, warmed up on one."""
    ilrs = [picture.hr.to(device) for picture in pictures[:TIMED]]  # an ILR has its HR's size
    net.to(device)
    with torch.autocast(device.type, enabled=False):
        for timed in (ilrs[:1], ilrs):
            _wait(device)
            began = time.perf_counter()
            for ilr in timed:
                upscale(net, ilr)
            _wait(device)
    return (time.perf_counter() - began) / len(ilrs)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(
    net: nn.Module,
    pictures: Iterable[Picture],
    scales: Sequence[float],
    device: torch.device,
    progress: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Score every picture at every scale; `progress` is called after each. Protocol: see `vdsr.metrics`."""
    rows = []
    for picture in pictures:
        for scale in scales:
            ilr, sr, hr = restore(net, picture, scale, device)
            network = psnr_ssim(sr, hr, scale)
            bicubic = network if sr is ilr else psnr_ssim(ilr, hr, scale)
            rows.append(Row(picture.set, picture.sample.key, scale, *map(float, (*network, *bicubic))))
            progress()
    return rows


def means(rows: Sequence[Row]) -> list[Row]:
    """One row a set and scale: the mean over its images (`image` then says how many)."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.set, row.scale), []).append(row)
    return [
        Row(
            name,
            str(len(group)),
            scale,
            *(
                sum(getattr(row, field) for row in group) / len(group)
                for field in ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")
            ),
        )
        for (name, scale), group in groups.items()
    ]
