"""The trackers: W&B, offline first, and TensorBoard beside it. The only module that touches wandb."""

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from vdsr.ranks import rank

log = logging.getLogger(__name__)

INIT_TIMEOUT = 10  # seconds; an unreachable server must not hold a training up


def wandb_logger(
    run_dir: Path,
    config: dict[str, Any],
    run_id: str,
    project: str,
    group: str,
    job_type: str,
    tags: Sequence[str],
) -> WandbLogger:
    """A W&B logger for this run: `WANDB_MODE` if set, else online with a key, else offline.

    A run that is started again continues under its id. An unreachable server is said once, and the
    run goes on offline (sync it later with `wandb sync`). Only rank 0 talks to W&B.
    """
    import wandb

    if rank() != 0:
        return WandbLogger(project=project)
    # killed runs keep all but the last second of their log, in place of fifteen
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    os.environ.setdefault("WANDB_SILENT", "true")
    start = functools.partial(
        wandb.init,
        project=project,
        id=run_id,
        name=run_dir.name,
        group=group,
        job_type=job_type,
        tags=list(tags),
        dir=str(run_dir),
        config=config,
        resume="allow",
    )
    try:
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        run = start(mode=mode, settings=wandb.Settings(init_timeout=INIT_TIMEOUT))
    except wandb.errors.CommError as error:  # unreachable, or the key is refused
        log.warning("W&B: %s; going on offline, sync later", " ".join(str(error).split())[:200])
        run = start(mode="offline")
    return WandbLogger(experiment=run)


def tensorboard_logger(run_dir: Path, config: dict[str, Any]) -> TensorBoardLogger:
    """TensorBoard event files in the run's folder: `tensorboard --logdir runs`."""
    return TensorBoardLogger(save_dir=run_dir, name="tensorboard", version="")


def log_picture(loggers: Sequence[Logger], key: str, pixels: NDArray[np.uint8], step: int) -> None:
    """Send an (H, W, 3) uint8 picture to every tracker that shows pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [pixels], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, pixels, step, dataformats="HWC")


def where(loggers: Sequence[Logger]) -> list[str]:
    """A line for each tracker that says where its run is to be seen."""
    lines = []
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            if getattr(run, "offline", False):
                lines.append(f"W&B (offline): wandb sync --yes {os.path.relpath(Path(run.dir).parent)}")
            else:
                lines.append(f"W&B: {run.url}")
        elif isinstance(logger, TensorBoardLogger):
            lines.append(f"TensorBoard: tensorboard --logdir {os.path.relpath(logger.log_dir)}")
    return lines


def preempting(loggers: Sequence[Logger]) -> None:
    """Tell W&B that a run leaves because it was asked to, and will go on; a sweep then gives it out again."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.mark_preempting()


def finish(loggers: Sequence[Logger], exit_code: int = 0) -> None:
    """Close the W&B run, so that the next point of a sweep begins one of its own."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish(exit_code=exit_code)
