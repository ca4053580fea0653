"""Benchmark pictures as bicubic, as a network and as they are, for the page's slider."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vdsr import files, hardware, net, weights
from vdsr.benchmark import restore
from vdsr.callbacks.pictures import colour
from vdsr.data import Picture, load_pictures
from vdsr.metrics import check_size, psnr
from vdsr.resize import modcrop
from vdsr.results.crops import SCALES
from vdsr.results.page import AtScale, Comparison, Pictures
from vdsr.sample import ensure_sample
from vdsr.shards import ShardSet


def draw_all(file: Path, data: Path, sets: str | Sequence[str], folder: Path) -> Pictures:
    """Every picture of the sets that are prepared in `data`, as lossless WebP in `folder`.

    file: weights. PSNR is the whole picture's luma by the benchmark protocol; the colours are the original's, degraded
    by bicubic. Raises InputError when the weights or a set cannot be read, or a picture is too small.
    """
    sets = [sets] if isinstance(sets, str) else sets
    device = hardware.device("auto")
    network = net.channels_last(weights.load(weights.find(file)).to(device))
    ensure_sample(data, [data / name for name in sets])
    pictures = [picture for name in sets for picture in load_pictures(ShardSet.open(data / name))]
    for picture in pictures:
        for scale in SCALES:
            check_size(picture.sample.height, picture.sample.width, scale, picture.sample.key)
    drawn = [_draw(network, picture, number, device, folder) for number, picture in enumerate(pictures)]
    return Pictures(f"the network of {file}", drawn)


def _draw(network: torch.nn.Module, picture: Picture, number: int, device: torch.device, folder: Path) -> Comparison:
    every = [modcrop(picture.hr, scale).shape[-2:] for scale in SCALES]
    height, width = (min(sides) for sides in zip(*every, strict=True))  # what all scales have

    def save(pixels: NDArray[np.uint8], what: str) -> str:
        path = folder / picture.set / f"{number:03}-{what}.webp"
        with files.whole(path) as temporary:
            Image.fromarray(pixels[:height, :width]).save(temporary, "WEBP", lossless=True)
        return path.relative_to(folder).as_posix()

    found = []
    for scale in SCALES:
        ilr, sr, hr = restore(network, picture, scale, device)
        bicubic, shown = (colour(luma, picture.pixels, scale) for luma in (ilr, sr))
        files_of = save(bicubic, f"x{scale:g}-bicubic"), save(shown, f"x{scale:g}-network")
        found.append(AtScale(scale, *files_of, float(psnr(ilr, hr, scale)), float(psnr(sr, hr, scale))))
    name = picture.sample.key.removeprefix(f"{picture.set}-")
    return Comparison(picture.set, name, save(picture.pixels, "original"), width, height, found)
