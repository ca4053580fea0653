"""The run's record, kept up to date while it trains, and the line a person reads after each validation."""

import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from vdsr import records
from vdsr.claim import Claim
from vdsr.task import SuperResolution

log = logging.getLogger(__name__)


class Recorder(pl.Callback):
    """Writes `record.json`: curve, validations, cost and what became of the run.

    record: what is known before training starts. A run that continues takes over what its earlier
    part had recorded up to the step it continues from. claim: on the run's folder.
    """

    def __init__(self, path: Path, record: records.Record, claim: Claim) -> None:
        self.path, self.record, self.claim = path, record, claim
        self.record |= {"status": "running", "curve": [], "validations": [], "seconds": 0.0, "steps": 0}
        self._began = time.perf_counter()
        self.record["cpu_seconds_to_first_step"] = None
        self._training = False
        self._seen = 0  # the last step, which several accumulated batches may belong to

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_over(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._training:  # no step was left to train, only the test
            self._take_over(trainer)

    def _take_over(self, trainer: pl.Trainer) -> None:
        self._training = True
        # only here is the step known that a checkpoint continues from
        if self.path.exists():
            earlier = records.read(self.path)
            self.record["seconds"] = earlier["seconds"]
            if trainer.global_step:
                self.record["started"] = earlier["started"]
            for key in ("curve", "validations"):
                self.record[key] = [point for point in earlier[key] if point["step"] <= trainer.global_step]
            for step, figures in tracked(self.record):  # the last of which a killed tracker may not have
                for logger in trainer.loggers:
                    logger.log_metrics(figures, step)
        self._seen = trainer.global_step
        self._began = time.perf_counter()
        self.write(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, SuperResolution)
        if self.record["cpu_seconds_to_first_step"] is None:
            self.record["cpu_seconds_to_first_step"] = time.process_time()
        new, self._seen = trainer.global_step != self._seen, trainer.global_step
        if not new or trainer.global_step % pl_module.log_every:
            return
        point = {
            key.removeprefix("train/"): float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith("train/")
        }
        self.record["curve"].append({"step": trainer.global_step, "epoch": pl_module.epoch, **point})
        if not math.isfinite(point.get("loss", 0.0)):
            why = f"the loss is {point['loss']} at step {trainer.global_step}"
            log.warning("this run diverged: %s; lower optim.lr or clip.theta", why)
            self.record |= {"status": "diverged", "error": why}
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SuperResolution)
        self.record["validations"].append(validation(pl_module))
        if trainer.is_global_zero:
            log.info("%s", validation_line(trainer, pl_module))
        self.write(trainer)

    def end(self, ending: records.Record) -> None:
        """Note what ended the run; a part of it that has not come to train leaves the record of those before it."""
        if not self._training and self.path.exists():
            self.record.update(records.read(self.path))
        self.record |= ending
        records.write_json(self.path, self.record)

    def write(self, trainer: pl.Trainer) -> None:
        """Save the record as it stands; rank 0 only. Raises InputError when the folder is another's by now."""
        self.claim.check()
        now = time.perf_counter()
        self.record["seconds"] += now - self._began
        self._began = now
        self.record["steps"] = trainer.global_step
        if trainer.is_global_zero:
            records.write_json(self.path, self.record)


def tracked(record: records.Record) -> Iterator[tuple[int, dict[str, float]]]:
    """What the trackers have of a record: (step as Lightning counts it there, from 0; figures)."""
    for point in record["curve"]:
        names = {key: key if key == "epoch" else f"train/{key}" for key in point if key != "step"}
        yield point["step"] - 1, {name: point[key] for key, name in names.items() if point[key] is not None}
    best = -math.inf
    for point in record["validations"]:
        best = max(best, point["psnr"])
        bicubic = [score["bicubic_psnr"] for scales in point["scores"].values() for score in scales.values()]
        gain = point["psnr"] - sum(bicubic) / len(bicubic)
        figures = {"val/psnr": point["psnr"], "val/psnr_best": best, "val/gain": gain, "epoch": point["epoch"]}
        for name, scales in point["scores"].items():
            for scale, score in scales.items():
                figures[f"val/{name}/{scale}/psnr"], figures[f"val/{name}/{scale}/ssim"] = score["psnr"], score["ssim"]
                figures[f"val/{name}/{scale}/gain"] = score["psnr"] - score["bicubic_psnr"]
        yield point["step"] - 1, figures


def validation(task: SuperResolution) -> dict[str, Any]:
    """The last validation's scores and the step they were taken at."""
    return {"step": task.scored_at, "epoch": task.epoch, "psnr": task.mean_psnr, "scores": scores(task)}


def scores(task: SuperResolution) -> dict[str, dict[str, dict[str, float]]]:
    """{set: {x<scale>: {psnr, ssim, bicubic_psnr, bicubic_ssim}}} of the last validation or test."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (name, scale), score in task.scores.items():
        bicubic = task.bicubic[name, scale]
        table.setdefault(name, {})[f"x{scale:g}"] = {
            "psnr": score.psnr,
            "ssim": score.ssim,
            "bicubic_psnr": bicubic.psnr,
            "bicubic_ssim": bicubic.ssim,
        }
    return table


def gain_where_trained(task: SuperResolution, scales: Sequence[float]) -> float:
    """Mean gain over bicubic in dB at the scales that are trained on; at all where none of those is scored.

    At `records.LEFT_BICUBIC` or below a network is its input: the commonest failure is to end exactly there.
    """
    gains = {key: score.psnr - task.bicubic[key].psnr for key, score in task.scores.items()}
    return statistics.fmean([gain for (_, scale), gain in gains.items() if scale in scales] or gains.values())


def validation_line(trainer: pl.Trainer, task: SuperResolution) -> str:
    """Step, mean PSNR and the gain over bicubic at each set and scale, for logs without a progress bar."""
    gains = "  ".join(
        f"{name} ×{scale:g} {score.psnr:.2f} ({score.psnr - task.bicubic[name, scale].psnr:+.2f})"
        for (name, scale), score in task.scores.items()
    )
    gain = gain_where_trained(task, trainer.datamodule.scales)  # type: ignore[attr-defined]
    stuck = "" if gain > records.LEFT_BICUBIC else "  · not beyond bicubic yet"
    return f"step {trainer.global_step}/{trainer.max_steps}  {gains}  dB (against bicubic){stuck}"
