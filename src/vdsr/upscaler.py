"""Pictures in, larger and sharper pictures out: luma through the network, the rest by bicubic interpolation."""

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vdsr import hardware, weights
from vdsr.colour import OFFSET, RGB_TO_YCBCR, YCBCR_TO_RGB
from vdsr.errors import InputError
from vdsr.net import channels_last
from vdsr.pixels import Pixels, plain
from vdsr.resize import resampling
from vdsr.tiles import TILE, cover
from vdsr.tiles import upscale as in_tiles

Picture = TypeVar("Picture", "NDArray[Any]", Tensor, Image.Image)

SMALLEST_TILE = 32
BYTES_PER_FILTER = 12  # a tile's pixel, measured: a layer's input and output, with what the convolution copies
SLACK = 60 * 10**6  # what the allocator, the encoders and the threads keep
LARGEST_SCALE = 8
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Upscaler:
    """A network, and what it takes to upscale whole colour pictures with it, of any size, in bounded memory.

    net: ILR luma → HR luma, with a `radius`. scales: that it was trained at, if known; for one between or below them
    the luma is made at the next of them and reduced by bicubic interpolation, which is several dB better. precision:
    as Lightning names it; `auto` is bf16 where that is fast.
    memory: bytes that the process may hold in all, within which tiles are chosen; None for no bound.
    ensemble: average over the eight turns and flips of each tile, at eight times the work.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        scales: Sequence[float] = (),
        device: str | torch.device = "cpu",
        precision: str = "auto",
        memory: int | None = None,
        ensemble: bool = False,
    ) -> None:
        self.device = torch.device(device)
        net = channels_last(net.to(self.device).eval())
        self._width = max((m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)), default=0)
        self._dtype = next((p.dtype for p in net.parameters()), torch.float32)
        self._bf16 = self._dtype == torch.float32 and hardware.precision(precision) == "bf16-mixed"
        self._to_ycbcr, self._to_rgb, self._offset = (
            torch.tensor(values, dtype=self._dtype, device=self.device)
            for values in (RGB_TO_YCBCR, YCBCR_TO_RGB, OFFSET[:, None, None] / 255)
        )
        self.net = Ensemble(net) if ensemble else net
        self.radius = int(net.radius)  # type: ignore[arg-type]
        self.scales = sorted(parse_scale(scale) for scale in scales)
        self._room = math.inf if memory is None else memory - hardware.resident()

    @classmethod
    def load(
        cls,
        name: str | Path = weights.DEFAULT,
        *,
        accelerator: str = "auto",
        precision: str = "auto",
        memory: str | None = None,
        ensemble: bool = False,
        backend: str = "torch",
    ) -> "Upscaler":
        """The network of that name, or of a weights file; on the GPU where there is one.

        accelerator: auto, cpu or cuda; memory: such as `1GB`; backend: torch, or onnx for ONNX Runtime on the CPU in
        float32. Raises InputError, also for weights that cannot be read.
        """
        hardware.exact()
        bound = None if memory is None else parse_memory(memory)
        if backend not in ("torch", "onnx"):
            raise InputError(f"backend={backend}: there are torch and onnx")
        path = weights.find(name)
        device, net, scales = hardware.device(accelerator), weights.load(path), weights.trained_at(path)
        if backend == "onnx":
            from vdsr.portable import OnnxRuntime  # needs packages that are not always there

            device, precision, net = torch.device("cpu"), "32-true", OnnxRuntime(net)
        return cls(net, scales=scales, device=device, precision=precision, memory=bound, ensemble=ensemble)

    def upscale(self, image: Picture, scale: float = 2) -> Picture:
        """The picture, ⌈scale·H⌉ × ⌈scale·W⌉, of the same type, channels and range.

        image: a NumPy array (H, W) or (H, W, C), a Pillow image, or a tensor (C, H, W) or (B, C, H, W) on any
        device. C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); uint8, uint16, or floats in [0, 1].
        scale: 1 to 8. Raises InputError for what it cannot take.
        """
        fraction = parse_scale(scale)
        if isinstance(image, Image.Image):
            array = self._whole(Pixels(plain(image)), fraction)
            return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        if isinstance(image, np.ndarray):
            array = self._whole(Pixels(image), fraction)
            return array[..., 0] if image.ndim == 2 else array
        if isinstance(image, Tensor) and image.ndim in (3, 4):
            pictures = [picture.movedim(0, -1).cpu().numpy() for picture in (image if image.ndim == 4 else image[None])]
            arrays = [torch.from_numpy(self._whole(Pixels(picture), fraction)).movedim(-1, 0) for picture in pictures]
            return (torch.stack(arrays) if image.ndim == 4 else arrays[0]).to(image.device)
        raise InputError(
            f"a {type(image).__name__}: give a NumPy array, a Pillow image or a tensor of (C, H, W) or (B, C, H, W)"
        )

    def strips(
        self, pixels: Pixels, scale: Fraction, tile: int, progress: Callable[[int], object] = lambda pixels: None
    ) -> Iterator[NDArray[Any]]:
        """The upscaled picture from top to bottom, in arrays of (`tile` or less, W, C).

        progress: called after each tile with the number of its pixels.
        """
        height, width = enlarged(pixels, scale)
        tiles = [tile.place for tile in cover(height, width, 0, tile)]
        sides = [self.side(length.stop, scale) for length in tiles[0]]  # of one size, as `cover` has them
        for rows, row in itertools.groupby(tiles, key=lambda place: (place[0].start, place[0].stop)):
            strip = np.empty((rows[1] - rows[0], width, pixels.channels), pixels.dtype)
            for place in row:
                axes = map(self._axis, (pixels.height, pixels.width), (scale, scale), place, sides)
                part = self._tile(pixels, *axes)
                strip[:, place[1]] = part
                progress(part.shape[0] * part.shape[1])
            yield strip

    def through(self, scale: Fraction) -> Fraction:
        """The scale at which the network makes the luma for `scale`: the next it was trained at, or that itself."""
        return next((trained for trained in self.scales if trained >= scale), scale)

    def side(self, tile: int, scale: Fraction) -> int:
        """Pixels a side of the ILR that the network sees for a tile of so many pixels of the upscaled picture."""
        shrink = self.through(scale) / scale
        reach = 0 if shrink == 1 else math.ceil(2 * shrink)
        return math.ceil(tile * shrink) + 2 * (reach + self.radius)

    def tile_within(self, taken: int, scale: Fraction, per_row: int = 0, largest: int = TILE) -> int:
        """The largest tile, in pixels a side of the upscaled picture, that the memory allows.

        Raises InputError if there is none. largest: pixels a side that the network makes at once.
        taken: bytes that a picture takes besides; per_row: bytes of a row of what is held of its tiles.
        """
        shrink = self.through(scale) / scale
        for tile in range(math.ceil(largest / shrink), 0, -SMALLEST_TILE):
            network = BYTES_PER_FILTER * max(self._width, 16) * self.side(tile, scale) ** 2
            lacking = taken + per_row * tile + network + SLACK - self._room
            if lacking <= 0:
                return tile
        raise InputError(f"needs {math.ceil(lacking / 1e6):,} MB more than memory= allows")

    @property
    def identity(self) -> str:
        """A digest of all that decides what comes out: weights, precision, ensemble, device."""
        digest = hashlib.sha256(f"{type(self.net)} {self._bf16} {self.device.type}".encode())
        for name, tensor in self.net.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def luma(self, ilr: Tensor, tile: int = TILE) -> Tensor:
        """(B, 1, H, W) ILR luma in [0, 1] through the network, in tiles."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            return in_tiles(self.net, ilr, tile)

    def _whole(self, pixels: Pixels, scale: Fraction) -> NDArray[Any]:
        _, width = enlarged(pixels, scale)
        held = pixels.nbytes + 2 * math.prod(enlarged(pixels, scale)) * pixels.channels * pixels.dtype.itemsize
        tile = self.tile_within(held, scale, width * pixels.channels * pixels.dtype.itemsize)
        return np.concatenate(list(self.strips(pixels, scale, tile)))

    def _axis(self, length: int, scale: Fraction, place: slice, side: int) -> "Axis":
        """How the rows `place` of an upscaled picture come from its `length` rows; or columns."""
        through = self.through(scale)
        whole = math.ceil(length * through)
        shown, reduced = resampling(whole, scale / through, place.start, place.stop)
        first = max(0, min(shown.start - self.radius, whole - side))
        low, ilr = resampling(length, through, first, min(first + side, whole))
        plain_low, plain = resampling(length, scale, place.start, place.stop)
        return Axis(low, ilr, _from(shown, first), reduced, _from(plain_low, low.start), plain)

    @torch.inference_mode()
    def _tile(self, pixels: Pixels, rows: "Axis", columns: "Axis") -> NDArray[Any]:
        low = torch.from_numpy(pixels.read(rows.low, columns.low).astype(np.float64)).to(self.device, self._dtype)
        low = low.movedim(-1, 0) / pixels.peak
        colour = pixels.channels > 2
        if colour:
            low = torch.cat([_mixed(self._to_ycbcr, low[:3]) + self._offset, low[3:]])
        ilr = rows.ilr.to(low) @ low[:1] @ columns.ilr.to(low).T
        luma = self.luma(ilr[None], max(ilr.shape[1:]))[0][:, rows.shown, columns.shown]
        luma = rows.reduced.to(low) @ luma @ columns.reduced.to(low).T
        rest = rows.plain.to(low) @ low[1:, rows.plain_low, columns.plain_low] @ columns.plain.to(low).T
        high = torch.cat([luma, rest])
        if colour:
            high = torch.cat([_mixed(self._to_rgb, high[:3] - self._offset), high[3:]])
        high = high.clamp(0, 1).movedim(0, -1) * pixels.peak
        if pixels.dtype.kind == "u":
            high = (high + 0.5).floor()  # as MATLAB rounds
        return high.cpu().numpy().astype(pixels.dtype)


class Axis(NamedTuple):
    """Rows (or columns) of a tile: of the picture, those that it depends on, and the matrices that lead from there."""

    low: slice  # of the picture
    ilr: Tensor  # those → the ILR that the network sees
    shown: slice  # of what it makes of that
    reduced: Tensor  # those → the tile's luma
    plain_low: slice  # of `low`
    plain: Tensor  # those → the tile's colours and transparency


class Ensemble(nn.Module):
    """The mean of a network's answers to the eight turns and flips of its input, turned back (Timofte et al. 2016)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.radius = net, net.radius

    def forward(self, ilr: Tensor) -> Tensor:
        total = torch.zeros_like(ilr)
        for turns, flip in itertools.product(range(4), (False, True)):
            seen = torch.rot90(ilr.flip(-1) if flip else ilr, turns, (-2, -1)).contiguous()
            answer = torch.rot90(self.net(seen), -turns, (-2, -1))
            total += answer.flip(-1) if flip else answer
        return total / 8


def parse_scale(scale: Any) -> Fraction:
    """A scale from 1 to 8 as a fraction. Raises InputError for anything else."""
    try:
        fraction = Fraction(str(scale)).limit_denominator(1000)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"scale {scale!r}: give a number from 1 to {LARGEST_SCALE}, such as 2 or 2.5") from None
    if not 1 <= fraction <= LARGEST_SCALE:
        raise InputError(f"scale {scale}: give a number from 1 to {LARGEST_SCALE}; this makes pictures larger")
    return fraction


def parse_memory(size: Any) -> int:
    """`1GB`, `800 MB` or a number of bytes → bytes (1 GB is 10⁹). Raises InputError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", str(size).strip().upper())
    if not match or not (found := int(float(match[1]) * UNITS[match[2]])):
        raise InputError(f"memory={size}: give a size such as 1GB or 800MB")
    return found


def enlarged(pixels: Pixels, scale: Fraction) -> tuple[int, int]:
    """Height and width of the upscaled picture, as MATLAB's imresize rounds them: up."""
    return math.ceil(pixels.height * scale), math.ceil(pixels.width * scale)


def _from(part: slice, start: int) -> slice:
    return slice(part.start - start, part.stop - start)


def _mixed(matrix: Tensor, planes: Tensor) -> Tensor:
    return torch.einsum("ij,jhw->ihw", matrix, planes)
