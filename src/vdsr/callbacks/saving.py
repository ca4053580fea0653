"""Checkpoints to continue from, each taken between two steps."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from vdsr.callbacks.recorder import Recorder


class Saving(pl.Callback):
    """Saves `path` every so many steps, once all that belongs to the step is done: logged, validated, recorded.

    The record comes first, so that it has every step of the checkpoint.
    """

    def __init__(self, path: Path, every: int, recorder: Recorder) -> None:
        self.path, self.every, self.recorder = path, every, recorder
        self._saved = -1  # the step of the last checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set Lightning's counters to between two steps: it takes a checkpoint to be from some hook within one."""
        self._saved = trainer.global_step
        loop, batches = trainer.fit_loop.epoch_loop, trainer.global_step * trainer.accumulate_grad_batches
        loop.restarting = False
        loop._batches_that_stepped = trainer.global_step
        for name in ("ready", "started", "processed", "completed"):
            setattr(loop.batch_progress.total, name, batches)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        if between_steps(trainer, index) and trainer.global_step % self.every == 0:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save the step at which the trainer stands, unless that is done already. Call it on every rank."""
        if trainer.global_step != self._saved:
            self.recorder.write(trainer)
            trainer.save_checkpoint(self.path)
            self._saved = trainer.global_step


def between_steps(trainer: pl.Trainer, index: int) -> bool:
    """Whether batch `index` is the first of those that a step accumulates."""
    return index % trainer.accumulate_grad_batches == 0
