"""From shards to batches: decoded luma in memory or a stream, crops by the plan, degradation on the device."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from vdsr.colour import luma
from vdsr.errors import InputError
from vdsr.images import decode
from vdsr.metrics import check_size
from vdsr.plan import Crops, Plan
from vdsr.resize import (
    degrade_windows,
    parse_scale,
    ratio,
    window_margin,
    window_pixels,
    window_size,
    window_start,
)
from vdsr.shards import Sample, ShardSet
from vdsr.source import Source
from vdsr.stream import Settings, Stream, StreamPlan, guard

log = logging.getLogger(__name__)

CROPS_AT_ONCE = 256  # cut and degraded in one go


class Pair(NamedTuple):
    """A training batch on the device: (B, 1, P, P) float32 luma in [0, 1]."""

    ilr: Tensor
    hr: Tensor


class Windows(NamedTuple):
    """One scale's crops before degradation: uint8 HR windows and where in them the patches lie."""

    scale: float
    pixels: Tensor  # (n, 1, S, S) uint8
    top: Tensor  # (n,) first row and column of the patch in its window
    left: Tensor
    turns: Tensor  # (n,) 3 bits, see Crops


class Picture(NamedTuple):
    """One benchmark image: uint8, (H, W, 3) RGB or (H, W) grey."""

    set: str
    sample: Sample
    pixels: NDArray[np.uint8]

    @property
    def hr(self) -> Tensor:
        """(1, 1, H, W) float32 luma in [0, 1]."""
        return torch.from_numpy(luma(self.pixels))[None, None].float() / 255


def load_pictures(shards: ShardSet) -> list[Picture]:
    """Every image of a set, decoded, in the order of its index. Raises InputError for damage."""

    def load(item: tuple[Sample, bytes]) -> Picture:
        sample, data = item
        pixels = decode(data, sample.key)
        if pixels.shape[:2] != (sample.height, sample.width):
            raise InputError(f"{shards.root}: {sample.key} is not of the size that the index says: prepare it again")
        return Picture(shards.name, sample, pixels)

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        return list(pool.map(load, shards.read()))


class LumaStore:
    """All training images as one flat uint8 tensor of luma: 45 MB for the 291, on any device."""

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self.pixels = torch.from_numpy(np.concatenate([image.ravel() for image in images]))
        sizes = np.array([image.size for image in images])
        self.offsets = torch.from_numpy(np.cumsum(sizes) - sizes)
        self.heights = torch.tensor([image.shape[0] for image in images])
        self.widths = torch.tensor([image.shape[1] for image in images])

    def to(self, device: torch.device) -> "LumaStore":
        """The same store with its pixels on `device`; nothing is copied when they are there already."""
        for name in ("pixels", "offsets", "heights", "widths"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def windows(self, crops: Crops, patch: int) -> Windows:
        """The windows that the patches of `crops` and their degradation depend on."""
        device = self.pixels.device
        image, top, left, turns = (torch.from_numpy(array).to(device) for array in crops[1:])
        side, step = window_size(patch, crops.scale), ratio(crops.scale).numerator
        first_row, first_column = window_start(top, crops.scale), window_start(left, crops.scale)
        height, width = self.heights[image], self.widths[image]
        rows = window_pixels(first_row, side, height - height % step)
        columns = window_pixels(first_column, side, width - width % step)
        index = (self.offsets[image][:, None] + rows * width[:, None])[:, :, None] + columns[:, None, :]
        return Windows(crops.scale, self.pixels.take(index)[:, None], top - first_row, left - first_column, turns)


def pair(windows: Windows, patch: int) -> Pair:
    """Degrade the windows and take the patches out of them: (n, 1, P, P) ILR and HR, turned."""
    margin = window_margin(windows.scale)
    hr = windows.pixels[..., margin:-margin, margin:-margin]
    ilr = degrade_windows(windows.pixels.float(), windows.scale)
    side = hr.shape[-1]
    corner = (windows.top - margin) * side + windows.left - margin
    index = _turned(patch, side, hr.device)[windows.turns] + corner[:, None]
    patches = [plane.flatten(1).gather(1, index).view(-1, 1, patch, patch) for plane in (ilr, hr)]
    return Pair(*(plane / 255 for plane in patches))


@functools.lru_cache(maxsize=16)
def _turned(patch: int, side: int, device: torch.device) -> Tensor:
    """Where a patch in the first corner of a square takes its pixels from: (8, P²), a row a turn, see `Crops.turns`."""
    turns = torch.arange(8, device=device)[:, None, None]
    row = torch.arange(patch, device=device)[:, None]
    column = row.T
    transposed = (turns & 4).bool()
    rows, columns = torch.where(transposed, column, row), torch.where(transposed, row, column)
    rows = torch.where((turns & 1).bool(), patch - 1 - rows, rows)
    columns = torch.where((turns & 2).bool(), patch - 1 - columns, columns)
    return (rows * side + columns).flatten(1)


class Batches(IterableDataset[Pair]):
    """The plan's batches from step `start` on, without end; the trainer's max_steps ends it.

    Small batches are made several steps at a time: most of their cost is in the calls, not in the pixels.
    """

    def __init__(self, plan: Plan, store: LumaStore, patch: int, start: int, samples: range) -> None:
        self.plan, self.store, self.patch, self.start, self.samples = plan, store, patch, start, samples

    def __iter__(self) -> Iterator[Pair]:
        together = max(1, CROPS_AT_ONCE // len(self.samples))
        for first in itertools.count(self.start, together):
            crops = self.plan.step(first, self.samples, together)
            made = [pair(self.store.windows(each, self.patch), self.patch) for each in crops]
            parts = [[plane.tensor_split(together) for plane in both] for both in made]
            for i in range(together):
                yield Pair(*(torch.cat([scale[plane][i] for scale in parts]) for plane in (0, 1)))


def _cut(image: NDArray[np.uint8], crops: Crops, patch: int) -> Windows:
    """The windows of one image that the stream has at hand, by the same road as those in memory."""
    return LumaStore([image]).windows(crops._replace(image=np.zeros_like(crops.image)), patch)


def _merge(rows: Sequence[tuple[Windows, int]]) -> Windows:
    """Single rows of many windows of one scale, as one."""
    columns = zip(*([column[row] for column in windows[1:]] for windows, row in rows), strict=True)
    return Windows(rows[0][0].scale, *map(torch.stack, columns))


class Pictures(Dataset[Picture | None]):
    """Benchmark images, dealt out to the ranks like cards: none twice. A rank that goes without gets None.

    Without any batch Lightning would leave the whole validation out there, and the others would wait for that rank.
    """

    def __init__(self, pictures: Sequence[Picture], rank: int, ranks: int) -> None:
        self.pictures: Sequence[Picture | None] = pictures[rank::ranks] or [None]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Picture | None:
        return self.pictures[index]


class SuperResolutionData(pl.LightningDataModule):
    """Training crops and benchmark images; the crops of a set beyond memory come from a stream.

    train: shard folder of HR images, with mode=stream also its http(s) address; val, test: shard folders of
    benchmarks (`test` defaults to `val`).
    scales: what to train at; val_scales: what to score at (`scales` if None), test_scales: in the final table.
    patch: side of a training patch. batch_size: global, over all ranks.
    Raises InputError for missing or damaged shards, an impossible scale, patch or batch; before training.
    """

    def __init__(
        self,
        train: str,
        val: Sequence[str],
        test: Sequence[str] | None = None,
        scales: Sequence[float] = (2, 3, 4),
        val_scales: Sequence[float] | None = None,
        test_scales: Sequence[float] | None = None,
        patch: int = 41,
        batch_size: int = 64,
        turn: bool = True,
        seed: int = 0,
        mode: str = "memory",
        stream: Settings | None = None,
    ) -> None:
        super().__init__()
        self.scales = parse_scales(scales, "data.scales")
        self.val_scales = parse_scales(val_scales, "data.val_scales") if val_scales is not None else self.scales
        self.test_scales = self.val_scales if test_scales is None else parse_scales(test_scales, "data.test_scales")
        for name, value in (("data.batch_size", batch_size), ("data.patch", patch)):
            if value < 1:
                raise InputError(f"{name}={value}: must be at least 1")
        if not val:
            raise InputError("data.val is empty: give at least one prepared folder to score on")
        self.patch, self.batch_size = patch, batch_size
        if mode not in ("memory", "stream"):
            raise InputError(f"data.mode={mode}: give memory or stream")
        settings = stream or Settings()
        cache = Path(settings.cache) if settings.cache else None
        self.source = Source(train, cache, settings.retries, settings.timeout)
        if self.source.remote and mode == "memory":
            raise InputError(f"data.train={self.source.shown} is an address: add data.mode=stream")
        self.train_shards = self.source.index()
        self.val_shards = [ShardSet.open(Path(folder)) for folder in val]
        self.test_shards = [ShardSet.open(Path(folder)) for folder in test or val]
        images = self.train_shards.samples
        for image in images:
            side = min(image.height, image.width)
            if any(side - side % ratio(scale).numerator < patch for scale in self.scales):
                raise InputError(
                    f"{self.source.shown}: {image.key} ({image.width}×{image.height}) is too small for patches "
                    f"of {patch} pixels: lower data.patch or leave the image out"
                )
        self.plan: Plan | StreamPlan
        if mode == "stream":
            self.plan = StreamPlan(self.train_shards, self.scales, patch, batch_size, seed, turn, settings)
        else:
            heights, widths = [image.height for image in images], [image.width for image in images]
            self.plan = Plan(heights, widths, self.scales, patch, batch_size, seed, turn)
        for sets, scored in ((self.val_shards, self.val_scales), (self.test_shards, self.test_scales)):
            for image in (image for shards in sets for image in shards.samples):
                for scale in scored:
                    check_size(image.height, image.width, scale, image.key)
        self.stream: Stream[Windows] | None = None
        self._store: LumaStore | None = None
        self._pictures: dict[str, list[Picture]] = {}

    def load(self) -> None:
        """Decode everything now, but for a stream. Raises InputError for damaged or missing shards or images."""
        for shards in [*self.val_shards, *self.test_shards]:
            self.pictures(shards)
        if isinstance(self.plan, StreamPlan):
            self.source.check(self.train_shards)
        else:
            _ = self.store

    def pictures(self, shards: ShardSet) -> list[Picture]:
        """The decoded images of a benchmark, kept for the next validation."""
        key = str(shards.root)
        if key not in self._pictures:
            self._pictures[key] = load_pictures(shards)
        return self._pictures[key]

    @property
    def store(self) -> LumaStore:
        """The decoded luma of the training images."""
        if self._store is None:
            self._store = LumaStore([luma(picture.pixels) for picture in load_pictures(self.train_shards)])
        return self._store

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        if self.batch_size % ranks:
            raise InputError(f"data.batch_size={self.batch_size} does not divide among {ranks} ranks")
        share = self.batch_size // ranks
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches
        samples = range(rank * share, (rank + 1) * share)
        if isinstance(self.plan, StreamPlan):
            source, cut = dataclasses.replace(self.source), functools.partial(_cut, patch=self.patch)
            self.stream = Stream(self.plan, source, samples, rank, ranks, start, cut, _merge)
            workers = self.plan.settings.workers
            return DataLoader(
                self.stream, batch_size=None, collate_fn=_as_it_is, num_workers=workers, worker_init_fn=guard
            )
        store = self.store.to(self.trainer.strategy.root_device)
        batches = Batches(self.plan, store, self.patch, start, samples)
        return DataLoader(batches, batch_size=None, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader[Picture | None]:
        return self._benchmark(self.val_shards)

    def test_dataloader(self) -> DataLoader[Picture | None]:
        return self._benchmark(self.test_shards)

    def _benchmark(self, sets: Sequence[ShardSet]) -> DataLoader[Picture | None]:
        assert self.trainer is not None
        pictures = [picture for shards in sets for picture in self.pictures(shards)]
        dealt = Pictures(pictures, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(dealt, batch_size=None, collate_fn=_as_it_is)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Degrade a stream's windows; other batches are made where the pixels live, or moved scale by scale."""
        if isinstance(batch, Exception):
            raise batch  # a worker's
        if not isinstance(batch, list):
            return batch
        moved = [Windows(windows.scale, *(column.to(device) for column in windows[1:])) for windows in batch]
        pairs = [pair(windows, self.patch) for windows in moved]
        return Pair(*map(torch.cat, zip(*pairs, strict=True)))

    @property
    def retries(self) -> int:
        """How often this rank had to ask for a shard or an index again."""
        return self.source.retried + (int(self.stream.retries.sum()) if self.stream else 0)

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self.retries:
            log.info("data: %d %s of shards", self.retries, "retry" if self.retries == 1 else "retries")


def _as_it_is(batch: Any) -> Any:
    return batch  # PyTorch would turn its arrays into tensors


def parse_scales(scales: Sequence[Any], name: str) -> tuple[float, ...]:
    """A non-empty sequence of valid scales, each once, in ascending order. Raises InputError."""
    if not isinstance(scales, Sequence) or isinstance(scales, str):
        raise InputError(f"{name}={scales}: give a list of scales, such as [2,3,4]")
    if not scales:
        raise InputError(f"{name} is empty: give at least one scale, such as [2,3,4]")
    return tuple(sorted({parse_scale(scale) for scale in scales}))
