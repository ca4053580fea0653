"""Comparisons, picture by picture, for whoever has the benchmarks: research images, so never part of the report."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from vdsr import hardware, net, weights
from vdsr.callbacks.pictures import compare
from vdsr.data import load_pictures
from vdsr.errors import InputError
from vdsr.shards import ShardSet

SETS = ("set5", "set14")
SCALES = (2.0, 3.0, 4.0)

log = logging.getLogger(__name__)


def draw_all(out: Path, data: Path, files: Mapping[str, str | Sequence[str] | None]) -> list[Path]:
    """bicubic | each network | original of every picture of Set5 and Set14, at ×2, ×3 and ×4, as PNGs in `out`.

    data: where the sets are prepared. files: weights by the title of their column, several where they are of networks
    that do some of the scales each; without them the column is left out. Raises InputError when there is no network, or
    none for a scale, or a set is not prepared.
    """
    device = hardware.device("auto")
    networks = {title: _by_scale([file] if isinstance(file, str) else file) for title, file in files.items() if file}
    if not networks:
        raise InputError("crops compares networks: give vdsr=FILE, or srcnn=FILE, or both")

    def at(scale: float) -> dict[str, nn.Module]:
        return {title: each[scale].to(device) for title, each in networks.items()}

    pictures = [picture for name in SETS for picture in load_pictures(ShardSet.open(data / name))]
    made = []
    for picture in pictures:
        path = out / picture.set / f"{picture.sample.key.split('/')[-1]}.png"
        compare(at, picture, SCALES, device, path)
        made.append(path)
    log.info("%d comparisons in %s", len(made), out)
    return made


def _by_scale(files: Sequence[str]) -> dict[float, nn.Module]:
    """The network for each scale: one that was trained at it, or whose file does not say."""
    found: dict[float, nn.Module] = {}
    for path in map(weights.find, files):
        network, trained = net.channels_last(weights.load(path)), weights.trained_at(path) or SCALES
        found |= {scale: network for scale in SCALES if scale in trained}
    if missed := [f"×{scale:g}" for scale in SCALES if scale not in found]:
        raise InputError(f"{', '.join(files)}: trained at no {', '.join(missed)}; name a network for each scale")
    return found
