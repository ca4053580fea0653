"""Which crops make up a training step: a pure function of (seed, step).

Nothing is shuffled, so nothing has to be saved: any rank can compute any step's samples at any time.
Random bits come from NumPy's Philox, whose raw stream is the same in every NumPy version.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdsr.errors import InputError
from vdsr.resize import ratio

Integers = NDArray[np.int64]
SHUFFLE, TURN = 1, 2  # what a stream of random bits is for


class Crops(NamedTuple):
    """One scale's crops of a step, all arrays of length n."""

    scale: float
    image: Integers  # which image of the set
    top: Integers  # first row and column of the patch in the HR image
    left: Integers
    turns: Integers  # 3 bits: mirror rows, mirror columns, transpose


class Plan:
    """The crops of every step: a grid of patches without overlap, at each scale, in a new order each epoch.

    heights, widths: sizes of the training images in HR pixels; patch: side in pixels (41 in the paper).
    Sample i of a step has scale i mod S, so each batch mixes the scales in the same proportion.
    turn: draw one of the 8 flips and rotations for each sample.
    Raises InputError when the set gives no patch, or fewer than a batch needs.
    Source: Kim et al. 2016, sections 3.3 and 4.1 (T91 gives 7,992 patches at ×2, ×3 and ×4).
    """

    def __init__(
        self,
        heights: Sequence[int],
        widths: Sequence[int],
        scales: Sequence[float],
        patch: int,
        batch_size: int,
        seed: int,
        turn: bool = True,
    ) -> None:
        self.scales, self.seed, self.turn = tuple(scales), seed, turn
        self.tables = [_grid(heights, widths, scale, patch) for scale in scales]
        self.shares = [len(range(j, batch_size, len(scales))) for j in range(len(scales))]
        self.batch_size = batch_size
        if batch_size < len(self.scales):
            raise InputError(f"data.batch_size={batch_size}: give each of the {len(self.scales)} scales at least one")
        for scale, table, share in zip(scales, self.tables, self.shares, strict=True):
            if len(table) < max(1, share):
                raise InputError(
                    f"the training set gives {len(table)} patches of {patch}×{patch} at ×{scale:g}, a batch of "
                    f"{batch_size} needs {share}: lower data.batch_size or data.patch, or add images"
                )

    @property
    def patches(self) -> int:
        """Patches in one epoch, over all scales."""
        return sum(map(len, self.tables))

    def step(self, step: int, samples: range | None = None, count: int = 1) -> list[Crops]:
        """The crops of `count` steps from `step` on, one after the other, one entry a scale.

        samples: picks some of a step's batch (a rank's share).
        """
        samples = range(self.batch_size) if samples is None else samples
        steps = np.arange(step, step + count)[:, None]
        drawn = range(step, step + count) if self.turn else ()
        bits = np.array([_random(self.seed, TURN, each, self.batch_size) for each in drawn])
        crops = []
        for j, (scale, table, share) in enumerate(zip(self.scales, self.tables, self.shares, strict=True)):
            mine = np.array([i for i in samples if i % len(self.scales) == j], dtype=np.int64)
            if not len(mine):
                continue
            position = (steps * share + mine // len(self.scales)).ravel()
            image, top, left = table[self._shuffled(j, position)].T
            turns = (bits[:, mine] & 7).astype(np.int64).ravel() if self.turn else np.zeros_like(position)
            crops.append(Crops(scale, image, top, left, turns))
        return crops

    def _shuffled(self, scale_index: int, position: Integers) -> Integers:
        """Rows of a scale's table for positions in its endless, epoch by epoch shuffled, sequence."""
        length = len(self.tables[scale_index])
        epochs, place = np.divmod(position, length)
        rows = np.empty_like(place)
        for epoch in np.unique(epochs):
            order = _order(self.seed, scale_index, int(epoch), length)
            rows[epochs == epoch] = order[place[epochs == epoch]]
        return rows


def _grid(heights: Sequence[int], widths: Sequence[int], scale: float, patch: int) -> Integers:
    """(n, 3) rows of (image, top, left): patches side by side on each image cut to the scale."""
    step = ratio(scale).numerator
    rows = [
        (image, top, left)
        for image, (height, width) in enumerate(zip(heights, widths, strict=True))
        for top in range(0, height - height % step - patch + 1, patch)
        for left in range(0, width - width % step - patch + 1, patch)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


@functools.lru_cache(maxsize=16)
def _order(seed: int, scale_index: int, epoch: int, length: int) -> Integers:
    return np.argsort(_random(seed, SHUFFLE + (scale_index << 8), epoch, length), kind="stable")


def _random(seed: int, purpose: int, counter: int, count: int) -> NDArray[np.uint64]:
    raw: NDArray[np.uint64] = np.random.Philox(key=[seed, purpose], counter=[0, 0, 0, counter]).random_raw(count)
    return raw
