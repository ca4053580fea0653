"""A signal ends the training in order: the ranks agree between two steps, save, and leave."""

import logging
import signal
from typing import Any

import pytorch_lightning as pl

from vdsr import signals
from vdsr.callbacks.saving import Saving, between_steps
from vdsr.data import SuperResolutionData
from vdsr.ranks import Ranks

log = logging.getLogger(__name__)


class Preemption(pl.Callback):
    """Looks for a signal before each step, and in a validation before each image; one rank's counts for all.

    A validation that is cut off is begun again from the checkpoint before it.
    """

    def __init__(self, saving: Saving, ranks: Ranks) -> None:
        self.saving, self.ranks = saving, ranks
        self.agreed = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # Lightning's handlers talk to the other ranks while these compute, and so may hang (its issue 21406);
        # and it asks all ranks for SIGTERM at each step by way of the GPU
        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        signals.mode(signals.WAIT)
        if between_steps(trainer, index):
            self.leave_if_asked(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int, loader: int = 0
    ) -> None:
        data: SuperResolutionData = trainer.datamodule  # type: ignore[attr-defined]
        images = sum(len(shards.samples) for shards in data.val_shards)
        # every rank has at least so many, and asks as often as the others
        if index < images // trainer.world_size and (status := self.ranks.most(signals.asked())):
            if trainer.is_global_zero:
                log.info("%s: leaving a validation; the last checkpoint stands", _name(status))
            self._leave(status)

    def leave_if_asked(self, trainer: pl.Trainer) -> None:
        """Save and leave if any rank was asked to. Call it on every rank, between two steps."""
        if status := self.ranks.most(signals.asked()):
            self.saving.save(trainer)
            if trainer.is_global_zero:
                log.info("%s: saved at step %d in %s", _name(status), trainer.global_step, self.saving.path)
            self._leave(status)

    def wait_for_others(self) -> None:
        """Hold a rank that leaves until all are about to: srun kills the others of one that has left."""
        if self.agreed:
            self.ranks.most(0)

    def _leave(self, status: int) -> None:
        self.agreed = True
        signals.leave(status)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Lightning ignores a second Ctrl-C
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # ranks that this process started


def _nothing() -> None:
    pass


def _name(status: int) -> str:
    return "SIGTERM" if status == signals.STATUS[signal.SIGTERM] else "SIGUSR1"
