"""Training crops out of shards as they are read, for sets beyond memory.

An image is fetched with its shard, decoded, and cut `crops` times; a shuffle buffer mixes the crops of the last
`buffer` images. What is drawn when is a function of (seed, lane, visit), where a lane is one worker of one rank,
so that the same ranks × workers give the same batches, and nothing has to be saved:

- exact on resume: every batch, and so the run, at any step and with any accumulation, if seed, batch, scales,
  ranks, workers, buffer and crops are as before. At most one buffer of images is decoded again for it; shards
  before that are not read.
- not exact: with other ranks × workers (or buffer, crops) the images come in another order, and the epoch under
  way may show some images twice and others not; each later epoch is whole again. Nor are the batches those of
  `data.mode=memory`, though every patch comes from the same grid.
"""

import gc
import heapq
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from vdsr.colour import luma
from vdsr.errors import InputError
from vdsr.images import decode
from vdsr.plan import Crops, Integers
from vdsr.resize import ratio
from vdsr.shards import ShardSet
from vdsr.source import Source, images_in

Cut = TypeVar("Cut")  # a visit's windows of one scale

SHARDS, CROPS = 3, 4  # what a stream of random bits is for; the plan in memory has 1 and 2


@dataclass(frozen=True)
class Settings:
    """How to stream; conf/data/base.yaml says why. Raises InputError for a number that makes no sense."""

    workers: int = 2
    buffer: int = 256
    crops: int = 16
    cache: str | None = None
    retries: int = 10
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("buffer", 1), ("crops", 1), ("retries", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"data.stream.{name}={value}: give a whole number, {least} or more")
        if not isinstance(self.timeout, (int, float)) or not self.timeout > 0:
            raise InputError(f"data.stream.timeout={self.timeout}: give seconds, above 0")


class Read(NamedTuple):
    """Consecutive visits of a lane to the images of one shard."""

    visit: int  # the number of the first
    shard: int
    images: range  # in the shard


class StreamPlan:
    """Which image each lane visits when, and what it cuts there: a function of (seed, lane, visit).

    Each epoch has the shards in a new order and deals their images, one after the other, to the lanes in
    contiguous runs of equal length, so that all keep pace and each image is visited once; where a run ends
    within a shard, two lanes read it. That also serves lanes that outnumber the shards.
    Raises InputError when the set is empty or the batch too small to hold every scale.
    """

    def __init__(
        self,
        shards: ShardSet,
        scales: Sequence[float],
        patch: int,
        batch_size: int,
        seed: int,
        turn: bool,
        settings: Settings,
    ) -> None:
        if batch_size < len(scales):
            raise InputError(f"data.batch_size={batch_size}: give each of the {len(scales)} scales at least one")
        if not shards.samples:
            raise InputError(f"{shards.name} holds no image: prepare one that does")
        self.shards, self.scales, self.patch = shards.shards, tuple(scales), patch
        self.seed, self.turn, self.settings = seed, turn, settings
        # arrays, as reading an object writes its reference count, and a worker's memory would grow by the index
        self.sizes = np.array([(sample.height, sample.width) for sample in shards.samples], dtype=np.int64)
        self.counts = np.array([shard.count for shard in shards.shards], dtype=np.int64)
        self.firsts = np.cumsum(self.counts) - self.counts

    @property
    def patches(self) -> int:
        """Patches in one epoch: every image visited once."""
        return len(self.sizes) * self.settings.crops

    def reads(self, lane: int, lanes: int, start: int) -> Iterator[Read]:
        """The lane's visits from number `start` on, without end."""
        images = len(self.sizes)
        visit = 0
        for epoch in itertools.count():
            run = (lane + epoch) % lanes  # in turn, as runs may differ by one image
            low, high = run * images // lanes, (run + 1) * images // lanes
            skipped = max(0, min(high - low, start - visit))
            low, visit = low + skipped, visit + skipped
            if low == high:
                continue
            order = np.argsort(self._random(SHARDS, 0, epoch, len(self.counts)), kind="stable")
            ends = np.cumsum(self.counts[order])
            for shard, end in zip(order.tolist(), ends.tolist(), strict=True):
                begin = end - int(self.counts[shard])
                here = range(max(low, begin) - begin, min(high, end) - begin)
                if here:
                    yield Read(visit, shard, here)
                    visit += len(here)

    def cells(self, image: int, scale: float) -> tuple[int, int]:
        """Rows and columns of the grid of patches on an image: the one that `Plan` has."""
        height, width = (self.sizes[image] - self.sizes[image] % ratio(scale).numerator) // self.patch
        return int(height), int(width)

    def draw(
        self, lane: int, visit: int, image: int, scale_of: Integers
    ) -> tuple[NDArray[np.uint64], list[tuple[int, Crops]]]:
        """Random bits for the delay of each of a visit's crops, and the crops, an entry a scale.

        scale_of: the number of each crop's scale. No corner comes twice while there are others.
        """
        wanted = scale_of.size
        grids = [self.cells(image, scale) for scale in self.scales]
        bits = self._random(CROPS, lane, visit, 2 * wanted + sum(rows * columns for rows, columns in grids))
        delays, turns, rest = bits[:wanted], bits[wanted : 2 * wanted], bits[2 * wanted :]
        crops = []
        for number, (scale, (rows, columns)) in enumerate(zip(self.scales, grids, strict=True)):
            corners, rest = np.argsort(rest[: rows * columns], kind="stable"), rest[rows * columns :]
            mine = scale_of == number
            corner = corners[np.arange(mine.sum()) % len(corners)]
            turned = (turns[mine] & 7).astype(np.int64) if self.turn else np.zeros(len(corner), np.int64)
            top, left = corner // columns * self.patch, corner % columns * self.patch
            crops.append((number, Crops(scale, np.full(len(corner), image), top, left, turned)))
        return delays, [entry for entry in crops if len(entry[1].top)]

    def _random(self, purpose: int, lane: int, counter: int, count: int) -> NDArray[np.uint64]:
        raw: NDArray[np.uint64] = np.random.Philox(key=[self.seed, purpose], counter=[0, 0, lane, counter]).random_raw(
            count
        )
        return raw


class Stream(IterableDataset[list[Cut] | Exception], Generic[Cut]):
    """A rank's batches from batch `start` on, without end: an entry a scale, in the plan's proportion.

    samples: the rank's part of the batch; sample i has scale i mod S. cut: luma and crops → their windows;
    merge: (windows, row) of each sample → one. Worker w of W makes the batches w, w + W, …
    An error comes as a batch, for the main process to raise: from a worker it would come as a traceback.
    retries: how often each worker had to ask again.
    """

    def __init__(
        self,
        plan: StreamPlan,
        source: Source,
        samples: range,
        rank: int,
        ranks: int,
        start: int,
        cut: Callable[[NDArray[np.uint8], Crops], Cut],
        merge: Callable[[Sequence[tuple[Cut, int]]], Cut],
    ) -> None:
        self.plan, self.source, self.cut, self.merge = plan, source, cut, merge
        self.start, self.rank = start, rank
        self.workers = max(1, plan.settings.workers)
        self.lanes = ranks * self.workers
        self.scale_of = np.array(samples, dtype=np.int64) % len(plan.scales)  # of each sample of a batch
        self.shares = np.bincount(self.scale_of, minlength=len(plan.scales))
        self.place = np.array([(self.scale_of[:i] == s).sum() for i, s in enumerate(self.scale_of)])  # in its share
        # how many of the lane's batches a crop may wait; a batch is drawn from as many
        self.depth = max(1, round(plan.settings.buffer * plan.settings.crops / len(samples)))
        self.retries = torch.zeros(self.workers, dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[list[Cut] | Exception]:
        info = get_worker_info()
        worker = info.id if info else 0
        number = self.start + worker  # the loader asks its workers in turn, beginning with the first
        try:
            yield from self.batches(self.rank * self.workers + number % self.workers, number // self.workers, worker)
        except InputError as error:
            yield InputError(str(error))
        except OSError as error:
            yield error

    def batches(self, lane: int, number: int, worker: int = 0) -> Iterator[list[Cut]]:
        """A lane's batches from its own number `number` on.

        A crop leaves the buffer at most `depth` batches after it came; from that many batches back on
        everything is drawn again, and the batches before `number` thrown away.
        """
        from webdataset import DataPipeline

        begin = max(0, number - self.depth)
        pipeline = DataPipeline(
            partial(self.plan.reads, lane, self.lanes, begin * len(self.scale_of) // self.plan.settings.crops),
            partial(self._images, worker),
            partial(self._crops, lane, begin * len(self.scale_of)),
            partial(self._shuffled, begin),
        )
        return itertools.islice(iter(pipeline), number - begin, None)

    def _images(self, worker: int, reads: Iterable[Read]) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        """(visit, image, luma), a shard open at a time."""
        for read in reads:
            shard = self.plan.shards[read.shard]
            before = self.source.retried
            try:
                file = self.source.open(shard)
            finally:
                self.retries[worker] += self.source.retried - before
            with file:
                samples = itertools.islice(images_in(file, shard.file), read.images.start, read.images.stop)
                for visit, position in enumerate(read.images, read.visit):
                    key, data = next(samples, ("", b""))
                    image = int(self.plan.firsts[read.shard]) + position
                    pixels = luma(decode(data, f"{shard.file}: {key}"))
                    if pixels.shape != tuple(self.plan.sizes[image]):
                        raise InputError(f"{shard.file}: {key} is not of the size its index says: prepare it again")
                    yield visit, image, pixels

    def _crops(
        self, lane: int, first: int, images: Iterable[tuple[int, int, NDArray[np.uint8]]]
    ) -> Iterator[tuple[int, list[tuple[int, int, tuple[Cut, int]]]]]:
        """For each visit and scale (scale, [(due, number, crop)]), from the lane's crop `first` on.

        Crop q of a lane takes sample q mod n of a batch of n, and has its scale. `number` counts the crops of
        a scale; `due` is the number whose arrival lets the crop go.
        """
        size, each = len(self.scale_of), self.plan.settings.crops
        for visit, image, pixels in images:
            crop = np.arange(visit * each, (visit + 1) * each)
            scale_of = self.scale_of[crop % size]
            numbers = crop // size * self.shares[scale_of] + self.place[crop % size]
            delays, drawn = self.plan.draw(lane, visit, image, scale_of)
            due = numbers + (delays % (self.depth * self.shares[scale_of]).astype(np.uint64)).astype(np.int64)
            for scale, crops in drawn:
                made = self.cut(pixels, crops)
                mine = scale_of == scale
                entries = zip(crop[mine].tolist(), due[mine].tolist(), numbers[mine].tolist(), strict=True)
                yield scale, [(d, n, (made, row)) for row, (q, d, n) in enumerate(entries) if q >= first]

    def _shuffled(
        self, begin: int, arrivals: Iterable[tuple[int, list[tuple[int, int, tuple[Cut, int]]]]]
    ) -> Iterator[list[Cut]]:
        """The shuffle buffer: crops in the order in which they are due, batch by batch."""
        scales = [scale for scale, share in enumerate(self.shares) if share]
        waiting: dict[int, list[tuple[int, int, tuple[Cut, int]]]] = {scale: [] for scale in scales}
        ready: dict[int, list[tuple[Cut, int]]] = {scale: [] for scale in scales}
        arrived = {scale: begin * int(self.shares[scale]) for scale in scales}
        for scale, entries in arrivals:
            for entry in entries:
                heapq.heappush(waiting[scale], entry)
            arrived[scale] += len(entries)
            while waiting[scale] and waiting[scale][0][0] < arrived[scale]:
                ready[scale].append(heapq.heappop(waiting[scale])[2])
            while all(len(ready[scale]) >= self.shares[scale] for scale in scales):
                yield [self.merge(ready[scale][: self.shares[scale]]) for scale in scales]
                for scale in scales:
                    del ready[scale][: self.shares[scale]]


def guard(worker: int) -> None:
    """In a worker process: leave signals to the main process, and end when it says so or is no more."""
    gc.freeze()  # a collection would write to every object of the main process, and so copy its memory
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    signals: set[Any] = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def watch() -> None:
        while parent.is_alive():
            received = signal.sigtimedwait(signals, 1.0)
            if received and (received.si_signo, received.si_pid) == (signal.SIGTERM, parent.pid):
                break
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
