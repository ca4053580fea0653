"""Run records as the tables want them: runs, groups of one configuration's seeds, series of one budget."""

import logging
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vdsr import records
from vdsr.errors import InputError
from vdsr.results import published

REQUIRED = ("name", "status", "overrides", "steps", "seconds", "validations", "curve")
NEAR = 1 / 40  # of the schedule: how far from a point of it a validation may lie

# What makes two runs the same but for the seed; where the images lie and what is scored do not count.
SETTINGS = ("model", "data", "optim", "clip", "trainer.max_steps", "trainer.accumulate_grad_batches")
INCIDENTAL = tuple(
    f"data.{key}" for key in ("seed", "train", "val", "test", "val_scales", "test_scales", "mode", "stream")
)
ORDER = (*published.SETS, "sample_val")  # of the sets in tables

CHECKSUM = "training set"
LEARNT = (CHECKSUM, "trainer.precision")  # settings that only a run which got so far can say

Benchmark = tuple[str, float]  # a set's name and a scale

log = logging.getLogger(__name__)


class Score(NamedTuple):
    """A network's PSNR in dB and SSIM on a set at a scale, and bicubic's."""

    psnr: float
    ssim: float
    bicubic_psnr: float
    bicubic_ssim: float

    @property
    def gain(self) -> float:
        """PSNR above bicubic's in dB."""
        return self.psnr - self.bicubic_psnr


class Figure(NamedTuple):
    """The mean over so many seeds, and their standard deviation where there are at least three."""

    mean: float
    sd: float | None
    seeds: int


@dataclass(frozen=True)
class Run:
    """One record. Raises InputError, naming `path`, where it is damaged or an older version left something out."""

    record: records.Record
    path: Path

    def __post_init__(self) -> None:
        missing = [key for key in REQUIRED if key not in self.record]
        missing += [key for key in ("metrics", "data", "network") if self.finished and key not in self.record]
        if missing:
            raise InputError(f"{self.path}: a record without {', '.join(missing)}, of an older version; run again")
        try:
            self._read()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
            raise InputError(f"{self.path}: a damaged record ({reason}); run again") from None

    def _read(self) -> None:
        """Read all that a report takes from a record, so that one that is no use is found out here."""
        _ = self.settings, self.command, self.outcome, self.hardware, self.seed, self.patches_per_second
        _ = self.curve(("", 1)), [scored(validation["scores"]) for validation in self.record["validations"]]
        _ = [point["step"] + 0 for point in self.record["curve"]], self.record["seconds"] + self.record["steps"]
        _ = self.share, self.network, self.data, self.checksum, self.precision, self.scales, self.seconds_per_image("")

    def __getitem__(self, key: str) -> Any:
        """The configuration at a dotted key, or None."""
        return records.lookup(self.record["config"], key)

    @property
    def name(self) -> str:
        """The experiment's."""
        return str(self.record["name"])

    @property
    def finished(self) -> bool:
        """Whether it has its final scores."""
        return self.record.get("status") == "finished"

    @property
    def outcome(self) -> str:
        """What became of it, in words."""
        status, error = self.record["status"], self.record.get("error")
        if status == "finished":
            return "finished" if self.learnt else "finished, not beyond bicubic"
        if status == "diverged":
            return f"diverged: {error}"
        name = "killed or still running" if status == "running" else str(status)
        return f"{name} at step {self.record['steps']:,} of {self.planned:,}" + (f": {error}" if error else "")

    @property
    def learnt(self) -> bool:
        """Whether it finished above bicubic on the mean, at the scales that it was trained on."""
        gains = [score.gain for (_, scale), score in self.scores.items() if scale in self.scales]
        return bool(gains) and statistics.fmean(gains) > records.LEFT_BICUBIC

    @property
    def batch(self) -> int:
        """Patches a step."""
        return int(self["data.batch_size"] or 0) * int(self["trainer.accumulate_grad_batches"] or 1)

    @property
    def planned(self) -> int:
        """Steps of the whole schedule."""
        return int(self["trainer.max_steps"] or 0)

    @property
    def share(self) -> float:
        """The planned patches as a share of the paper's 637,440."""
        return self.planned * self.batch / published.PATCHES

    @property
    def data(self) -> str:
        """The training set's name."""
        return str(self.record.get("data", {}).get("train") or Path(str(self["data.train"])).name)

    @property
    def checksum(self) -> str:
        """Of the training set's index, in hexadecimal; empty where the run failed before it was read."""
        return str(self.record.get("data", {}).get("checksums", {}).get(self.data, ""))

    @property
    def network(self) -> str:
        """VDSR, SRCNN."""
        return str(self.record.get("network", {}).get("name") or str(self["model._target_"]).split(".")[-1])

    @property
    def precision(self) -> str:
        """What the training computed in; `auto` where an older version did not say."""
        return str(self.record.get("precision") or self["trainer.precision"])

    @property
    def arithmetic(self) -> str:
        """The precision, and by whose kernels where not PyTorch's."""
        kernels = self.record.get("kernels", "PyTorch")
        return self.precision if kernels == "PyTorch" else f"{self.precision}, {kernels} kernels"

    @property
    def scales(self) -> tuple[float, ...]:
        """Trained on."""
        return tuple(sorted(float(scale) for scale in self["data.scales"] or ()))

    @property
    def hardware(self) -> str:
        """GPUs by name, or the processor and its cores."""
        found = self.record.get("hardware", {})
        gpus = found.get("gpus") or []
        if gpus:
            return f"{len(gpus)} × {gpus[0]}"
        return f"{found['cpu']}, {found['cores']} cores" if "cpu" in found else ""

    @property
    def patches_per_second(self) -> float | None:
        """The median over the run."""
        rates = [point["patches_per_second"] for point in self.record["curve"] if point.get("patches_per_second")]
        return statistics.median_low(rates) if rates else None

    def seconds_per_image(self, name: str) -> float | None:
        """What the network took for an image of that set, on this run's hardware; None where it was not measured."""
        found = self.record.get("inference") or {}
        return found.get("seconds_per_image") if found.get("set") == name else None

    @property
    def command(self) -> str:
        """What repeats it, given the prepared sets; a sweep's point by itself."""
        kept = [word for word in self.record["overrides"] if not word.lstrip("+").startswith(("paths.", "logger"))]
        experiment = [word for word in kept if word.startswith("+experiment=")]
        single = ["hydra.mode=RUN"] if experiment else []
        words = [*experiment, *single, *(word for word in kept if word not in experiment)]
        return " ".join(["python src/train.py", *map(shlex.quote, words)])

    @property
    def seed(self) -> int:
        """Of the plan and of the initial weights."""
        return int(self["seed"])

    @property
    def settings(self) -> dict[str, Any]:
        """What makes it the same run as another but for the seed, by dotted key."""
        flat = records.flatten(self.record["config"])
        kept = {key: value for key, value in flat.items() if below(key, SETTINGS) and not below(key, INCIDENTAL)}
        kept = {key: value for key, value in kept.items() if value is not None}  # a setting that came later is off
        return kept | {"trainer.precision": self.precision, CHECKSUM: self.checksum}

    @cached_property
    def scores(self) -> dict[Benchmark, Score]:
        """The final scores; empty for a run that did not finish."""
        return scored(self.record["metrics"]) if self.finished else {}

    def at(self, share: float) -> dict[Benchmark, Score]:
        """The scores at a share of the schedule: the final ones at 1, else those of a near validation, if any."""
        if share == 1:
            return self.scores
        wanted = share * self.planned
        found = min(self.record["validations"], key=lambda v: abs(v["step"] - wanted), default=None)
        return scored(found["scores"]) if found and abs(found["step"] - wanted) <= NEAR * self.planned else {}

    def curve(self, benchmark: Benchmark) -> list[tuple[float, float]]:
        """Share of the schedule and PSNR at each validation."""
        points = [(v["step"] / self.planned, scored(v["scores"])) for v in self.record["validations"]]
        return [(share, scores[benchmark].psnr) for share, scores in points if benchmark in scores]


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only, by seed; or networks of one scale each, one for each of several scales."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The one to ask for what they share."""
        return self.runs[0]

    @property
    def outcome(self) -> str:
        """What became of them: one line for all, or one a seed."""
        if len({run.outcome for run in self.runs}) == 1:
            return self.first.outcome + self._seeds
        several = len(self.scale_sets) > 1
        at = [f" at ×{run.scales[0]:g}" if several else "" for run in self.runs]
        return "\n".join(f"seed {run.seed}{where}: {run.outcome}" for run, where in zip(self.runs, at, strict=True))

    @property
    def _seeds(self) -> str:
        """How many, where any network has several."""
        counts = [len({run.seed for run in self.runs if run.scales == scales}) for scales in self.scale_sets]
        if max(counts) == 1:
            return ""
        return f", {max(counts)} seeds" if min(counts) == max(counts) else f", {min(counts)} to {max(counts)} seeds"

    @property
    def scale_sets(self) -> list[tuple[float, ...]]:
        """What its networks are trained on: one set, or a scale each."""
        return sorted({run.scales for run in self.runs})

    @property
    def network(self) -> str:
        """VDSR, or "SRCNN, one a scale"."""
        return self.first.network + (", one a scale" if len(self.scale_sets) > 1 else "")

    @property
    def share(self) -> float:
        """The planned patches of its networks together, as a share of the paper's 637,440."""
        return sum({run.scales: run.share for run in self.runs}.values())

    @property
    def benchmarks(self) -> list[Benchmark]:
        """The sets and scales that it has final scores of."""
        return benchmarks([self])

    def figure(self, benchmark: Benchmark, field: str = "psnr", share: float = 1) -> Figure | None:
        """The mean of a `Score`'s field over the seeds; None where no run has it."""
        found = {(run.seed, str(run.path)): score for run in self.runs if (score := run.at(share).get(benchmark))}
        values = [float(getattr(score, field)) for score in found.values()]
        seeds = len({seed for seed, _ in found})
        if not values:
            return None
        return Figure(statistics.fmean(values), statistics.stdev(values) if seeds > 2 else None, seeds)

    def value(self, benchmark: Benchmark, field: str = "psnr") -> float | None:
        """The figure's mean."""
        figure = self.figure(benchmark, field)
        return figure.mean if figure else None


def paths(folder: Path) -> list[Path]:
    """Every record's below a folder, in their order: `record.json`s, or any `*.json` where there is none.

    Raises InputError when there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of run records; name it with records=DIR")
    return sorted(folder.rglob(records.FILE)) or sorted(folder.rglob("*.json"))


def read_each(folder: Path) -> tuple[list[Run], list[str]]:
    """Every record below a folder, and a line for each that is of no use: cut off, damaged, of another version.

    Raises InputError when there is no such folder.
    """
    found, complaints = [], []
    for path in paths(folder):
        try:
            found.append(Run(records.read(path), path))
        except InputError as error:
            complaints.append(str(error))
    return found, complaints


def read(folder: Path) -> list[Run]:
    """Every record below a folder. Raises InputError when there is no such folder, or any record is of no use."""
    found, complaints = read_each(folder)
    refuse(complaints, folder)
    return found


def refuse(complaints: Sequence[str], folder: Path) -> None:
    """Raise InputError where there are complaints; several have a line each in the log."""
    if len(complaints) == 1:
        raise InputError(complaints[0])
    for complaint in complaints:
        log.error("%s", complaint)
    if complaints:
        raise InputError(f"{folder}: {len(complaints)} records cannot be used")


def series(runs: Iterable[Run], *swept: str) -> list[list[Group]]:
    """Runs that may be compared: all settings alike but those `swept` (dotted keys, or a group of them).

    Each series as its points in the order of the swept values; the series with the most training first.
    """
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: not run.checksum):
        key = _key(run, swept, inside=False)
        if not run.checksum:  # it failed before it had any data; it belongs to those that got on
            same = _key(run, (*swept, *LEARNT), inside=False)
            key = next((k for k, others in found.items() if _key(others[0], (*swept, *LEARNT), False) == same), key)
        found.setdefault(key, []).append(run)
    made = [_points(members, swept) for members in found.values()]
    return sorted(made, key=lambda points: (-points[0].first.share, points[0].first.data, str(points[0].first.path)))


def benchmarks(groups: Sequence[Group]) -> list[Benchmark]:
    """The sets and scales that any of them has final scores of, sets in the paper's order."""
    found = {benchmark for group in groups for run in group.runs for benchmark in run.scores}
    names = [*ORDER, *sorted({name for name, _ in found} - set(ORDER))]
    return sorted(found, key=lambda benchmark: (names.index(benchmark[0]), benchmark[1]))


def scored(metrics: Any) -> dict[Benchmark, Score]:
    """A record's {set: {x<scale>: figures}}, without those that are not a number."""
    return {
        (name, float(scale.removeprefix("x"))): Score(*(float(figures[field]) for field in Score._fields))
        for name, scales in metrics.items()
        for scale, figures in scales.items()
        if None not in (figures[field] for field in Score._fields)
    }


def _points(runs: Sequence[Run], swept: Sequence[str]) -> list[Group]:
    """The groups of a series, in the order of the swept values."""
    points: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, str(run.path))):
        points.setdefault(_key(run, swept, inside=True), []).append(run)
    groups = [Group(tuple(point)) for point in points.values()]
    return sorted(groups, key=lambda group: [records.order(group.first[key]) for key in swept])


def _key(run: Run, keys: Sequence[str], inside: bool) -> str:
    """The settings below, or not below, some dotted keys, as text to compare."""
    return repr(sorted((key, value) for key, value in run.settings.items() if below(key, keys) == inside))


def below(key: str, places: Sequence[str]) -> bool:
    """Whether a dotted key is one of `places`, or lies in one."""
    return any(key == place or key.startswith(f"{place}.") for place in places)
