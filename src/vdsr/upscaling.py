"""What `src/upscale.py` does: files, folders and streams through an upscaler, one after the other."""

import contextlib
import functools
import glob
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vdsr import photos
from vdsr.cli import explain
from vdsr.errors import InputError, about
from vdsr.files import whole
from vdsr.images import image_format
from vdsr.upscaler import Upscaler, enlarged, parse_scale

STREAM = Path("-")
PICTURES = (*photos.KINDS, ".bmp")
VIDEOS = (
    ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
    ".3gp", ".ogv",
)  # fmt: skip
VIDEO_CODECS = ("h264", "h265", "av1", "ffv1")
CONTAINERS = (".mp4", ".m4v", ".mkv", ".mov", ".webm")  # of videos that are written

Advance = Callable[[float, str], object]  # called with the share of the file that was done, and at what rate


class Job(NamedTuple):
    """A file and where its larger version goes."""

    source: Path
    target: Path


class Settings(NamedTuple):
    """What was asked for, checked."""

    scale: Fraction
    name: str  # of outputs beside their inputs, such as x2.5
    format: str | None
    quality: int
    codec: str | None
    overwrite: bool


def upscale(cfg: DictConfig) -> None:
    """Upscale what `input` names. Raises InputError; of several files, bad ones are named and left out first.

    A terminal shows progress and the time left. Inputs are never written to.
    """
    settings = _settings(cfg)
    jobs = plan(str(cfg.input), None if cfg.output is None else str(cfg.output), settings)
    options = {name: cfg[name] for name in ("accelerator", "precision", "ensemble", "memory", "backend")}
    upscaler = Upscaler.load(str(cfg.weights), **options)
    streaming = jobs[0].target == STREAM
    say = Console(highlight=False, markup=False, soft_wrap=True, quiet=streaming).print
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if upscaler.scales and settings.scale > upscaler.scales[-1]:
        most = f"{float(upscaler.scales[-1]):g}"
        console.print(f"scale {cfg.scale}: the network was trained up to {most}; beyond, expect sharper edges at most")
    left_out = 0
    sizes = [1 if job.source == STREAM else max(1, job.source.stat().st_size) for job in jobs]
    text = (TextColumn("{task.description}", markup=False), TextColumn("{task.fields[rate]}"))
    columns = (text[0], BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), text[1])
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(sizes), rate="")
        for number, (job, size) in enumerate(zip(jobs, sizes, strict=True), 1):
            bar.update(task, description=f"{number}/{len(jobs)} {job.source.name}")
            try:
                say(_one(job, settings, upscaler, functools.partial(_advance, bar, task, size)))
            except (InputError, FileNotFoundError, PermissionError) as error:
                if len(jobs) == 1:
                    raise
                left_out += 1
                say(f"left out {explain(error)}")
            bar.update(task, completed=sum(sizes[:number]))
    if left_out:
        raise InputError(f"{cfg.input}: {left_out} of {len(jobs)} left out, named above")


def plan(source: str, output: str | None, settings: Settings) -> list[Job]:
    """What goes where. Raises InputError when there is nothing to do, or no place for it."""
    path, out = Path(source).expanduser(), None if output is None else Path(output).expanduser()
    if path == STREAM:
        return [Job(STREAM, out or STREAM)]
    if path.is_dir():
        out = out or path.with_name(f"{path.resolve().name}_{settings.name}")
        if out.resolve() == path.resolve():
            raise InputError(f"output={output} is the input folder: name another")
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and out not in file.parents]
        found = [file for file in found if file.suffix.lower() in PICTURES + VIDEOS and file.name[0] != "."]
        jobs = [Job(file, out / file.relative_to(path).with_suffix(_suffix(file, settings))) for file in found]
    else:
        found = [path] if path.is_file() else sorted(Path(file) for file in glob.glob(str(path), recursive=True))
        jobs = [Job(file, _target(file, out, settings)) for file in found if file.is_file()]
    if not jobs:
        raise InputError(f"{source}: no such file" if not path.exists() else f"{source}: has no pictures and no videos")
    if len(jobs) > 1 and len({job.target for job in jobs}) < len(jobs):
        twice = next(job for job in jobs if sum(other.target == job.target for other in jobs) > 1)
        raise InputError(f"{twice.target}: more than one input would go there ({twice.source}, …); name a folder")
    return jobs


def _target(source: Path, output: Path | None, settings: Settings) -> Path:
    suffix = _suffix(source, settings)
    if output is None:
        return source.with_name(f"{source.stem}_{settings.name}{suffix}")
    if output == STREAM or (output.suffix.lower() in PICTURES + CONTAINERS and not output.is_dir()):
        return output
    return output / f"{source.stem}{suffix}"


def _suffix(source: Path, settings: Settings) -> str:
    suffix = source.suffix.lower()
    if suffix in VIDEOS:
        return suffix if suffix in CONTAINERS else ".mp4" if suffix == ".gif" else ".mkv"
    if settings.format:
        return photos.SUFFIXES[settings.format]
    return source.suffix if suffix in photos.KINDS else ".png"


def _one(job: Job, settings: Settings, upscaler: Upscaler, advance: Advance) -> str:
    """Upscale one file; returns what to say of it."""
    began = time.perf_counter()
    if job.target.exists():
        if job.target.samefile(job.source):
            raise InputError(f"{job.source}: would be written over; name another output")
        if not settings.overwrite:
            raise InputError(f"{job.target}: is there already; set overwrite=true to replace it")
    with _reading(job.source) as file:
        start = file.read(16)
        file.seek(0)
        if job.source == STREAM or image_format(start) or job.source.suffix.lower() in PICTURES:
            done = picture(file, job, settings, upscaler, lambda share: advance(share, ""))
            return f"{job.target}: {done}, {time.perf_counter() - began:.1f} s"
    done = _video(job, settings, upscaler, lambda share, fps: advance(share, f"{fps:.1f} frames/s" if fps else ""))
    return f"{job.target}: {done}, {time.perf_counter() - began:.1f} s"


def _video(job: Job, settings: Settings, upscaler: Upscaler, advance: Callable[[float, float], object]) -> str:
    from vdsr import video  # FFmpeg's libraries, which pictures do not need

    if job.target.suffix.lower() not in CONTAINERS:
        raise InputError(f"{job.source}: is no picture; a video goes into {', '.join(CONTAINERS)}: name such an output")
    done = video.upscale(job.source, job.target, upscaler, settings.scale, settings.codec, advance)
    return f"{done.frames} frames of {done.width}×{done.height}, {done.frames_per_second:.1f} frames/s"


def picture(
    file: BinaryIO,
    job: Job,
    settings: Settings,
    upscaler: Upscaler,
    advance: Callable[[float], object] = lambda share: None,
) -> str:
    """Upscale an open picture into the job's target; returns the size. advance: called with shares of the work."""
    name = "standard input" if job.source == STREAM else str(job.source)
    photo = photos.read(file, name, check=lambda taken: upscaler.tile_within(taken, settings.scale))
    pixels = photo.pixels
    suffix = job.target.suffix.lower() if job.target != STREAM else photos.SUFFIXES.get(settings.format or "", "")
    kind = photos.KINDS.get(suffix) or (photo.kind if photo.kind in photos.KINDS.values() else "PNG")
    height, width = enlarged(pixels, settings.scale)
    with about(name):
        photos.refuse_unfit(kind, pixels.channels, width, height)
        row = 4 * width * pixels.channels * pixels.dtype.itemsize
        tile = upscaler.tile_within(pixels.nbytes + height * width * photos.BYTES_WRITTEN[kind], settings.scale, row)
        strips = upscaler.strips(pixels, settings.scale, tile, lambda done: advance(done / (height * width)))
        with _writing(job.target) as out:
            photos.write(out, kind, strips, width, height, photo.extras, settings.quality)
    return f"{width}×{height}"


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[BinaryIO]:
    """A file that can be read from any place, as a stream cannot."""
    if source != STREAM:
        with source.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.seek(0)
        yield file


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[BinaryIO]:
    """A file that is there whole or not at all; so with standard output."""
    if target != STREAM:
        with whole(target) as temporary, temporary.open("wb") as file:
            yield file
        return
    if sys.stdout.isatty():
        raise InputError("a picture is nothing for a terminal; give output=FILE, or send it on with > or |")
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        shutil.copyfileobj(file, sys.stdout.buffer)


def _settings(cfg: DictConfig) -> Settings:
    if cfg.format not in (None, *photos.SUFFIXES):
        raise InputError(f"format={cfg.format}: there are {', '.join(photos.SUFFIXES)}")
    if not isinstance(cfg.quality, int) or not 1 <= cfg.quality <= 100:
        raise InputError(f"quality={cfg.quality}: give a whole number from 1 to 100")
    if cfg.codec not in (None, *VIDEO_CODECS):
        raise InputError(f"codec={cfg.codec}: there are {', '.join(VIDEO_CODECS)}")
    scale = parse_scale(cfg.scale)
    return Settings(scale, f"x{float(scale):g}", cfg.format, cfg.quality, cfg.codec, bool(cfg.overwrite))


def _advance(bar: Progress, task: TaskID, size: int, share: float, rate: str) -> None:
    bar.update(task, advance=share * size, rate=rate)
