"""Patches per second between logged steps, validation left out."""

import time
from typing import Any

import pytorch_lightning as pl

from vdsr.task import SuperResolution


class Throughput(pl.Callback):
    """Logs `train/patches_per_second`, over all ranks, as wall time between two logged steps has it."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._since: tuple[int, float] | None = None  # step and time of the last logged step

    def on_validation_end(self, *_: Any) -> None:
        self._since = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, SuperResolution)
        step = trainer.global_step
        if step % pl_module.log_every:
            return
        now = time.perf_counter()
        if self._since is not None and step > self._since[0]:
            patches = (step - self._since[0]) * self.batch_size * trainer.accumulate_grad_batches
            rate = patches / (now - self._since[1])
            pl_module.log("train/patches_per_second", rate, prog_bar=True)
        self._since = (step, now)
