"""Ranks that would train different things do not start."""

from typing import Any

import pytorch_lightning as pl

from vdsr.ranks import Ranks


class Agreement(pl.Callback):
    """Compares what every rank is about to train, before the first step.

    facts: by name, what must be equal on all ranks. Raises InputError, the same on every rank.
    """

    def __init__(self, ranks: Ranks, facts: dict[str, Any]) -> None:
        self.ranks, self.facts = ranks, facts

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.ranks.meet()
            self.ranks.compare(self.facts)
