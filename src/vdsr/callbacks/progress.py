"""The progress bar of a terminal: what one watches while a network trains."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar

SHOWN = {
    "train/loss": ("loss", ".4f"),
    "val/psnr": ("PSNR", ".2f"),
    "val/gain": ("gain", "+.2f"),
    "train/patches_per_second": ("patches/s", ".0f"),
    "train/gradient_norm": ("|g|", ".2g"),
    "train/share_clipped": ("clipped", ".1%"),
}


class ProgressBar(TQDMProgressBar):
    """Loss, validation PSNR and gain over bicubic (dB), patches/s, gradient norm, share of clipped gradients."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        values: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        return {name: format(float(values[key]), spec) for key, (name, spec) in SHOWN.items() if key in values}
