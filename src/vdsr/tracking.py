"""The trackers: W&B, offline first, and TensorBoard beside it. The only module that touches wandb.

A run that was killed takes some steps again when it goes on. What its earlier parts have logged of them is read from
their files, W&B's transaction logs and TensorBoard's event files, and left out: each tracker has each figure once.
"""

import contextlib
import functools
import json
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from vdsr.ranks import rank

log = logging.getLogger(__name__)

INIT_TIMEOUT = 10  # seconds; an unreachable server must not hold a training up

Logged = set[tuple[str, int | None]]  # keys and the steps they have been logged at


class Wandb(WandbLogger):
    """W&B's logger, less what has been logged before; once W&B fails, the run goes on without it."""

    def __init__(self, logged: Logged, **settings: Any) -> None:
        super().__init__(**settings)
        self._logged, self._failed = logged, False

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        new = _new(metrics, step, self._logged)
        if not new or self._failed:
            return
        try:
            super().log_metrics(new, step)
        except Exception as error:  # of its own process: a signal to the whole job ends it before us
            self._failed = True
            log.warning("W&B has gone (%s): the run goes on without it", " ".join(f"{error}".split())[:100])


class TensorBoard(TensorBoardLogger):
    """TensorBoard's logger, less what has been logged before."""

    def __init__(self, logged: Logged, **settings: Any) -> None:
        super().__init__(**settings)
        self._logged = logged

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(_new(metrics, step, self._logged), step)

    def log_picture(self, key: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Show an (H, W, 3) uint8 picture."""
        if (key, step) not in self._logged:
            self.experiment.add_image(key, pixels, step, dataformats="HWC")


def _new(metrics: Mapping[str, Any], step: int | None, logged: Logged) -> dict[str, Any]:
    new = {key: value for key, value in metrics.items() if (key, step) not in logged}
    return {} if new.keys() <= {"epoch"} else new


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

    logged = _in_wandb(run_dir)

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
    return Wandb(logged, experiment=run)


def tensorboard_logger(run_dir: Path, config: dict[str, Any]) -> TensorBoardLogger:
    """TensorBoard event files in the run's folder: `tensorboard --logdir runs`."""
    return TensorBoard(_in_tensorboard(run_dir / "tensorboard"), save_dir=run_dir, name="tensorboard", version="")


def log_picture(loggers: Sequence[Logger], key: str, pixels: NDArray[np.uint8], step: int) -> None:
    """Send an (H, W, 3) uint8 picture to every tracker that shows pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [pixels], step=step)
        elif isinstance(logger, TensorBoard):
            logger.log_picture(key, pixels, step)


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
            with contextlib.suppress(Exception):  # W&B may be gone
                logger.experiment.mark_preempting()


def finish(loggers: Sequence[Logger], exit_code: int = 0) -> None:
    """Close the W&B run, so that the next point of a sweep begins one of its own."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        try:
            wandb.finish(exit_code=exit_code)
        except Exception as error:  # W&B may be gone
            log.warning("W&B: the run could not be closed (%s)", " ".join(f"{error}".split())[:100])
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code)


def _in_wandb(run_dir: Path) -> Logged:
    """What W&B's transaction logs of earlier parts of the run hold."""
    from wandb.util import get_core_path

    logged: Logged = set()
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability", "--run-file"]
    for path in run_dir.glob(
        "wandb/*run-*/run-*.wandb"
    ):  # a part that was killed early has only a stub, and gives none
        for line in subprocess.run([*command, path], capture_output=True, text=True, check=False).stdout.splitlines():
            row = json.loads(line).get("history", {}).get("item", {})
            logged |= {(key.removesuffix("._type"), row.get("trainer/global_step")) for key in row}
    return logged


def _in_tensorboard(folder: Path) -> Logged:
    """What the event files of earlier parts of the run hold."""
    paths = sorted(folder.glob("events.out.tfevents.*"))
    if not paths:
        return set()
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return {
        (value.tag, event.step)
        for path in paths
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    }
