"""Comparisons, picture by picture, for whoever has the benchmarks: research images, so never part of the report."""

import logging
from collections.abc import Mapping
from pathlib import Path

from vdsr import hardware, net, weights
from vdsr.callbacks.pictures import compare
from vdsr.data import load_pictures
from vdsr.errors import InputError
from vdsr.shards import ShardSet

SETS = ("set5", "set14")
SCALES = (2.0, 3.0, 4.0)

log = logging.getLogger(__name__)


def draw_all(out: Path, data: Path, files: Mapping[str, str | None]) -> list[Path]:
    """bicubic | each network | original of every picture of Set5 and Set14, at ×2, ×3 and ×4, as PNGs in `out`.

    data: where the sets are prepared. files: weights by the title of their column; without them the column is
    left out. Raises InputError when there is no network, or a set is not prepared.
    """
    device = hardware.device("auto")
    networks = {
        title: net.channels_last(weights.load(weights.find(file)).to(device)) for title, file in files.items() if file
    }
    if not networks:
        raise InputError("crops compares networks: give vdsr=FILE, or srcnn=FILE, or both")
    pictures = [picture for name in SETS for picture in load_pictures(ShardSet.open(data / name))]
    made = []
    for picture in pictures:
        path = out / picture.set / f"{picture.sample.key.split('/')[-1]}.png"
        compare(networks, picture, SCALES, device, path)
        made.append(path)
    log.info("%d comparisons in %s", len(made), out)
    return made
