"""The paper from one command: each point of each experiment in a process of its own, and its record kept."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vdsr import points, records
from vdsr.errors import InputError

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parents[1]
ENDED = ("finished", "diverged")  # nothing more would come of running it again


@dataclass(frozen=True)
class Point:
    """One run: its place in its sweep, its overrides, and its work in multiply-adds of training."""

    command: tuple[str, ...]
    number: int
    overrides: tuple[str, ...]
    work: float

    @property
    def title(self) -> str:
        """The experiment and what sets this point apart."""
        return " ".join(o.removeprefix("+experiment=") for o in self.overrides if not o.startswith("paths."))


def reproduce(cfg: DictConfig) -> None:
    """Run what is left of the experiments in `cfg.commands` and copy each run's record to `cfg.results`.

    Raises InputError when a point failed or diverged, once all have run.
    """
    if not isinstance(cfg.jobs, int) or cfg.jobs < 1:
        raise InputError(f"jobs={cfg.jobs}: give a whole number, 1 or more")
    runs = Path(cfg.paths.runs)
    found = [point for command in cfg.commands for point in _points(command, cfg)]
    left = [point for point in found if _status(runs, point) not in ENDED]
    for point in found:
        log.info("%-9s %s", _status(runs, point) or "to run", point.title)
    rates = [point.work / record["seconds"] for point in found if (record := _ended(runs, point))]
    rate = sorted(rates)[len(rates) // 2] * cfg.jobs if rates else None
    estimate = f", about {_duration(sum(point.work for point in left) / rate)}" if rate else ""
    log.info("%d of %d runs are done; left: %d%s", len(found) - len(left), len(found), len(left), estimate)
    if cfg.dry_run:
        return
    _prepare(cfg)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        ThreadPoolExecutor(cfg.jobs) as pool,
    ):
        # finished runs too: src/train.py sees whether configuration and data are still the same
        total = sum(point.work for point in found)
        bar_id = bar.add_task("training", total=len(found))
        began = time.monotonic()
        done = 0.0
        for point, status in pool.map(lambda point: (point, _run(point, cfg)), found):
            done += point.work
            bar.advance(bar_id)
            remaining = (total - done) * (time.monotonic() - began) / done
            log.info("%-9s %s; %s left", status, point.title, _duration(remaining))
    bad = [point for point in found if _status(runs, point) != "finished"]
    if bad:
        raise InputError(f"{len(bad)} of {len(found)} runs did not finish, such as {bad[0].title}: see {runs / 'logs'}")


def _points(command: str, cfg: DictConfig) -> list[Point]:
    """The points of one experiment, with what each will cost."""
    loader = GlobalHydra.instance().config_loader()
    shared = [f"paths.runs={cfg.paths.runs}", f"paths.data={cfg.paths.data}"]
    arguments = [*command.split(), f"budget={cfg.budget.name}", *shared]
    sweep = loader.load_configuration("train", arguments, RunMode.MULTIRUN)
    return [
        Point(
            tuple(arguments),
            number,
            tuple(overrides),
            _work(loader.load_configuration("train", overrides, RunMode.RUN)),
        )
        for number, overrides in enumerate(points.points(sweep))
    ]


def _work(cfg: DictConfig) -> float:
    """Multiply-adds of a run's forward passes: what is needed to tell a long run from a short one."""
    patches = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches * cfg.data.batch_size
    layers = cfg.model.get("depth", 5) - 1  # SRCNN takes as long as four of VDSR's layers, by PyTorch's kernels
    return float(patches * cfg.data.patch**2 * 9 * 64**2 * layers)


def _run(point: Point, cfg: DictConfig) -> str:
    """Train one point in a process of its own, its output in a log file; how its record says it ended."""
    runs = Path(cfg.paths.runs)
    logs = runs / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    name = "_".join(point.title.replace("/", "-").split())
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // cfg.jobs))} if cfg.jobs > 1 else {}
    environment = os.environ | threads | {points.VARIABLE: str(point.number)}
    with (logs / f"{name}.log").open("a") as file:
        script = [sys.executable, str(SOURCES / "train.py"), "-m", *point.command]
        ended = subprocess.run(script, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    path = _find(runs, point)
    if path is None:
        return "failed"
    record = records.read(path)
    if record["status"] == "running":  # it had no time to say how it ended
        records.write_json(path, record | {"status": "killed", "error": f"ended with status {ended.returncode}"})
    folder = path.parent.relative_to(runs)
    kept = Path(cfg.results) / folder.parent / f"{folder.name}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f"{kept.name}.tmp")
    shutil.copyfile(path, temporary)
    temporary.replace(kept)
    return _status(runs, point) or "failed"


def _find(runs: Path, point: Point) -> Path | None:
    """The record of a point's run, if it has left one."""
    for path in sorted(runs.rglob(records.FILE)):
        if records.read(path)["overrides"] == list(point.overrides):
            return path
    return None


def _status(runs: Path, point: Point) -> str | None:
    path = _find(runs, point)
    return str(records.read(path)["status"]) if path else None


def _ended(runs: Path, point: Point) -> Mapping[str, float] | None:
    path = _find(runs, point)
    record = records.read(path) if path else None
    return record if record and record["status"] == "finished" and record["seconds"] else None


def _prepare(cfg: DictConfig) -> None:
    """Prepare the sets that are not; raises InputError when one cannot be had."""
    script = SOURCES.parent / "data_prep" / "prepare.py"
    for dataset in cfg.datasets:
        if (Path(cfg.paths.data) / dataset).is_dir():
            continue
        source = [f"source={cfg.source}"] if cfg.source else []
        arguments = [sys.executable, str(script), f"dataset={dataset}", f"paths.data={cfg.paths.data}", *source]
        if subprocess.run(arguments, check=False).returncode:
            raise InputError(f"{dataset} could not be prepared: give source=DIR with local copies of its images")


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
