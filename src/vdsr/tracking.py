"""The trackers: W&B, offline first, and TensorBoard beside it. The only module that touches wandb.

W&B always writes to the run's folder; where there is a key, `vdsr.upload` sends it on from there meanwhile.
A run that was killed takes some steps again when it goes on. What its earlier parts have logged of them is read from
their files, W&B's transaction logs and TensorBoard's event files, and left out: each tracker has each figure once.
"""

import contextlib
import json
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from vdsr import signals
from vdsr.errors import InputError
from vdsr.ranks import rank
from vdsr.shards import ShardSet
from vdsr.upload import Upload

log = logging.getLogger(__name__)

LONGEST_ID = 64

Logged = set[tuple[str, int | None]]  # keys and the steps they have been logged at


class Wandb(WandbLogger):
    """W&B's logger, less what has been logged before; once W&B fails, the run goes on without it.

    upload: sends the run on, if there is somewhere to send it. upload_data: whether the data sets' images go too.
    """

    def __init__(self, logged: Logged, upload: Upload | None, upload_data: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self._logged, self._failed = logged, False
        self.upload, self.upload_data = upload, upload_data

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if new := _new(metrics, step, self._logged):
            self.attempt(super().log_metrics, new, step)

    def attempt(self, action: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
        """Do what fails once W&B's own process has gone: a signal to the whole job ends it before us."""
        if self._failed:
            return
        try:
            action(*arguments, **settings)
        except Exception as error:
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
    upload_data: bool = False,
) -> WandbLogger:
    """A W&B logger for this run: `WANDB_MODE` if set, else online with a key, else offline.

    A run that is started again continues under its id; a sweep's agent gives it one, and a project. Whatever becomes of
    the server, the run goes on, and its folder has all of it (`wandb sync`). Only rank 0 talks to W&B.
    """
    import wandb

    logged = _in_wandb(run_dir)

    if rank() != 0:
        return WandbLogger(project=project)
    # killed runs keep all but the last second of their log, in place of fifteen
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    os.environ.setdefault("WANDB_SILENT", "true")
    mode: Any = os.environ.get("WANDB_MODE") or "online"
    upload = mode == "online" and _has_key()
    agent = "WANDB_SWEEP_ID" in os.environ
    run = wandb.init(
        project=None if agent else project,
        id=None if agent else _short(run_id),
        name=run_dir.name,
        group=group,
        job_type=job_type,
        tags=list(tags),
        dir=str(run_dir),
        config=config,
        resume="allow",
        mode="offline" if mode == "online" else mode,
    )
    sender = Upload(Path(run.dir).parent, run.settings.base_url) if upload else None
    return Wandb(logged, sender, upload_data, experiment=run)


def entity() -> str:
    """The user or team that W&B's key belongs to. Raises InputError without a key that the server takes."""
    import wandb

    with refusals("W&B"):
        if not wandb.login(prompt=False, verify=False):
            raise InputError("W&B: there is no key: wandb login, or WANDB_API_KEY")
        return str(wandb.Api().default_entity)


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """What W&B or its server says against something, as an InputError of one line."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except InputError:
        raise
    except (wandb.errors.Error, WandbApiFailedError, OSError, ValueError) as error:
        raise InputError(f"{what}: {' '.join(str(error).split())[:200]}") from None


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
        if isinstance(logger, Wandb):
            folder = Path(logger.experiment.dir).parent
            if logger.upload and logger.upload.complete:
                lines.append(f"W&B: {logger.upload.url}")
            elif folder.is_dir():
                lines.append(f"W&B (offline): wandb sync --yes {os.path.relpath(folder)}")
        elif isinstance(logger, TensorBoardLogger):
            lines.append(f"TensorBoard: tensorboard --logdir {os.path.relpath(logger.log_dir)}")
    return lines


def preempting(loggers: Sequence[Logger]) -> None:
    """Tell W&B that a run leaves because it was asked to, and will go on; a sweep then gives it out again."""
    for logger in _wandb(loggers):
        with contextlib.suppress(Exception):  # W&B may be gone
            logger.experiment.mark_preempting()


def log_data(loggers: Sequence[Logger], sets: Sequence[ShardSet]) -> None:
    """Note in W&B which data sets the run uses: each is a version for each checksum, without its images.

    The images themselves go along only if the logger was asked to (`upload_data`), and if they are on a disk.
    """
    for logger in _wandb(loggers):
        for shards in {shards.checksum: shards for shards in sets}.values():
            facts = {"name": shards.name, "checksum": shards.checksum, "images": shards.count}
            facts |= {"bytes": shards.total_bytes, "licence": shards.licence, "source": shards.source}
            artifact = _artifact(f"data-{shards.name}", "dataset", facts)
            with artifact.new_file("shards.json") as file:
                json.dump({shard.file: shard.sha256 for shard in shards.shards}, file, indent=1)
            if logger.upload_data and shards.root.is_dir():
                for shard in shards.shards:
                    artifact.add_file(str(shards.root / shard.file), policy="immutable", skip_cache=True)
            # use_artifact() does this for a new one, but asks the server, and refuses to offline
            logger.attempt(logger.experiment._log_artifact, artifact, use_after_commit=True)


def log_weights(loggers: Sequence[Logger], path: Path, facts: Mapping[str, Any]) -> None:
    """Give W&B the weights that the run has produced, with what is known of them."""
    for logger in _wandb(loggers):
        artifact = _artifact(f"weights-{logger.experiment.id}", "model", facts)
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
        logger.attempt(logger.experiment.log_artifact, artifact)


def log_scores(loggers: Sequence[Logger], metrics: Mapping[str, Any], figures: Mapping[str, float], step: int) -> None:
    """Give W&B the final benchmark: each figure as `test/…`, and a table of them.

    metrics: a record's, {set: {x<scale>: {psnr, ssim, bicubic_psnr, bicubic_ssim}}}, dB. figures: of the whole.
    """
    columns = ["psnr", "ssim", "bicubic_psnr", "bicubic_ssim"]
    rows = [
        [name, scale, *(row[column] for column in columns), row["psnr"] - row["bicubic_psnr"]]
        for name, scales in metrics.items()
        for scale, row in scales.items()
    ]
    every = {f"test/{key}": value for key, value in figures.items()}
    every |= {f"test/{name}/{scale}/psnr": psnr for name, scale, psnr, *_ in rows}
    every |= {f"test/{name}/{scale}/ssim": ssim for name, scale, _, ssim, *_ in rows}
    for logger in _wandb(loggers):
        logger.log_metrics(every, step)
        logger.log_table("test/benchmark", ["set", "scale", *columns, "gain"], rows, step=step)


def finish(loggers: Sequence[Logger], exit_code: int = 0) -> None:
    """Close the W&B run, so that the next point of a sweep begins one of its own, and see it off."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        try:
            wandb.finish(exit_code=exit_code)
        except Exception as error:  # W&B may be gone
            log.warning("W&B: the run could not be closed (%s)", " ".join(f"{error}".split())[:100])
            with contextlib.suppress(Exception):
                wandb.teardown(exit_code)
    for logger in _wandb(loggers):
        if logger.upload:
            logger.upload.finish(asked_to_leave=bool(signals.asked()))


def _short(name: str) -> str:
    """W&B puts a run's id into names of its own, of 128 characters at most."""
    return name if len(name) <= LONGEST_ID else f"{name[: LONGEST_ID - 11]}-{sha256(name.encode()).hexdigest()[:10]}"


def _has_key() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        log.warning("W&B: %s; going on offline", " ".join(f"{error}".split())[:200])
        return False


def _wandb(loggers: Sequence[Logger]) -> list[Wandb]:
    return [logger for logger in loggers if isinstance(logger, Wandb)]


def _artifact(name: str, kind: str, facts: Mapping[str, Any]) -> Any:
    import wandb

    return wandb.Artifact(re.sub(r"[^\w.-]", "-", name), kind, metadata=dict(facts))


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
