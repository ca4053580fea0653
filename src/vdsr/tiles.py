"""A large image through a network, tile by tile, with nothing changed but the memory it takes."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

TILE = 512  # pixels a side: D = 20 needs 0.3 GB for one; smaller tiles spend more on their overlap


class Tile(NamedTuple):
    """Rows and columns: of the tile in the image, of the window it is computed from, of the tile in that window."""

    place: tuple[slice, slice]
    window: tuple[slice, slice]
    inside: tuple[slice, slice]


def cover(height: int, width: int, radius: int, tile: int = TILE) -> Iterator[Tile]:
    """Tiles that make up an image, row by row; each window has the whole receptive field, or ends at the border.

    All windows of an image have one size: the convolution library keeps memory for each that it meets. Tiles are
    `tile` pixels a side, or as much less as makes them all alike.
    """
    down, across = (math.ceil(length / math.ceil(length / tile)) for length in (height, width))
    for top in range(0, height, down):
        rows = _span(top, height, radius, down)
        for left in range(0, width, across):
            yield Tile(*zip(rows, _span(left, width, radius, across), strict=True))


def _span(start: int, length: int, radius: int, tile: int) -> tuple[slice, slice, slice]:
    side = tile + 2 * radius
    stop = min(start + tile, length)
    first = max(0, min(start - radius, length - side))
    return slice(start, stop), slice(first, min(first + side, length)), slice(start - first, stop - first)


@torch.inference_mode()
def upscale(net: nn.Module, ilr: Tensor, tile: int = TILE) -> Tensor:
    """The network's output for (B, 1, H, W) ILR luma of any size; memory is bounded by one tile's.

    Tiles overlap by the network's `radius` and are cut back to what has its whole receptive field, so
    that each pixel is computed from the same numbers as without tiles. In float32 the result is equal to
    6e-6: the convolution library picks its kernel by the tensor's size, and kernels round differently.
    """
    height, width = ilr.shape[-2:]
    radius = int(net.radius)  # type: ignore[arg-type]
    if radius == 0 or max(height, width) <= tile:
        return net(ilr)
    sr = torch.empty_like(ilr)
    for place, window, inside in cover(height, width, radius, tile):
        sr[(..., *place)] = net(ilr[(..., *window)])[(..., *inside)]
    return sr
