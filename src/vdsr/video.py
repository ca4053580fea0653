"""Videos: each frame's luma through the network, its chroma by bicubic; sound, subtitles and times as they were.

Frames are encoded in segments of their own, each written whole, so that whatever stops the work costs one segment;
then they are joined with the other streams. There are no B-frames: packets then come in the order of their times,
however the frames are spaced, and segments join without a seam.
"""

import contextlib
import errno
import heapq
import io
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import av
import av.error
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from av.stream import AttachmentStream
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from vdsr.errors import InputError
from vdsr.files import whole
from vdsr.resize import resampling
from vdsr.upscaler import Upscaler

os.environ.setdefault("SVT_LOG", "1")  # or the AV1 encoder greets on standard error

SEGMENT = 200  # frames: what an interruption costs at most
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
CODECS = {
    "h264": ("libx264", {"crf": "18", "bf": "0"}),
    "h265": ("libx265", {"crf": "20", "x265-params": "bframes=0:log-level=none"}),
    "av1": ("libsvtav1", {"crf": "25", "preset": "8"}),
    "ffv1": ("ffv1", {"level": "3"}),
}
LAYOUTS = ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le")
AV1_LAYOUTS = ("yuv420p", "yuv420p10le")
SAME = {"yuvj420p": "yuv420p", "yuvj422p": "yuv422p", "yuvj444p": "yuv444p", "p010le": "yuv420p10le"}
COLOUR = ("color_range", "color_primaries", "color_trc", "colorspace")
HANDED_ON = (*COLOUR, "sample_aspect_ratio")
BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**22}  # of a batch's output: on two cores small frames gain, on a GPU all
# of an output frame, measured at 1920×1080: what the encoders look ahead, and the frames and planes beside it
BYTES_PER_PIXEL = {"h264": 240, "h265": 250, "av1": 360, "ffv1": 150}
LONGEST_SIDE = 16_384
MISSING = 0.5  # seconds that may be lacking at the end of a video that is whole


class Video(NamedTuple):
    """What was written."""

    frames: int
    width: int
    height: int
    frames_per_second: float  # of those that were not there already


def upscale(
    source: Path,
    target: Path,
    upscaler: Upscaler,
    scale: Fraction,
    codec: str | None = None,
    advance: Callable[[float, float], object] = lambda share, fps: None,
) -> Video:
    """Upscale a video into MP4, MOV, Matroska or WebM, as the target's suffix says.

    codec: h264 (the default), h265, av1 (WebM's default) or ffv1, which is without loss. An interrupted video goes on
    from its finished segments, beside the target, and comes out the same. advance: called with shares of the video
    and frames/s. Raises InputError, and leaves nothing behind, for what is no video, damaged, cut off in the middle,
    or cannot be held by the target's format.
    """
    if source.stat().st_size == 0:
        raise InputError(f"{source}: is empty (0 bytes); copy or download it again")
    codec = codec or ("av1" if target.suffix.lower() == ".webm" else "h264")
    parts = target.with_name(f".{target.name}.parts")
    try:
        with source.open("rb") as file, _translated(source), _opened(file) as container:
            stream = _video_stream(container, source)
            job = _Job(stream, source, target, upscaler, scale, codec)
            job.check_target(container)
            job.begin(parts)
            done = job.run(container, parts, advance)
        with source.open("rb") as file, _translated(source), _opened(file) as container:
            job.join(container, parts, done.frames)
    except InputError:
        shutil.rmtree(parts, ignore_errors=True)
        raise
    shutil.rmtree(parts, ignore_errors=True)
    return done


class _Job:
    """One video's way from the first frame to the last segment, and their joining."""

    def __init__(
        self, stream: VideoStream, source: Path, target: Path, upscaler: Upscaler, scale: Fraction, codec: str
    ) -> None:
        self.source, self.target, self.upscaler, self.scale, self.codec = source, target, upscaler, scale, codec
        context = stream.codec_context
        layout = SAME.get(context.pix_fmt or "", context.pix_fmt or "")
        self.layout = layout if layout in (AV1_LAYOUTS if codec == "av1" else LAYOUTS) else "yuv420p"
        self.depth = 10 if "10" in self.layout else 8
        self.index, self.height, self.width = stream.index, context.height, context.width
        self.time_base, self.rate = stream.time_base or Fraction(1, 1000), Fraction(stream.average_rate or 25)
        self.handed_on = {name: getattr(context, name) for name in HANDED_ON if getattr(context, name)}
        self.rotation = 0
        # the formats that share chroma among pixels need an even number of them
        across, down = (1 if "444" in self.layout else 2), (2 if "420" in self.layout else 1)
        self.size = (
            math.ceil(self.height * scale) // down * down,
            math.ceil(self.width * scale) // across * across,
        )
        if min(self.height, self.width) < 2 or min(self.size) < 16:
            raise InputError(f"{source}: its frames of {self.width}×{self.height} are too small for a video")
        if max(self.size) > LONGEST_SIDE:
            raise InputError(f"{source}: frames of {self.size[1]}×{self.size[0]} are more than {LONGEST_SIDE} a side")
        self.through = upscaler.through(scale)
        self.made = math.ceil(self.height * self.through), math.ceil(self.width * self.through)  # by the network
        pixels, made = math.prod(self.size), math.prod(self.made)
        taken = BYTES_PER_PIXEL[codec] * pixels + 8 * (made - pixels)  # the network's luma before and after, float32
        try:
            self.tile = upscaler.tile_within(taken, scale, largest=max(512, *self.made))
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        self.batch = max(1, BATCH_PIXELS[upscaler.device.type] // made)

    # --- what could go wrong at the very end is tried first ---

    def check_target(self, container: InputContainer) -> None:
        """Raises InputError when the target's format cannot hold the codec, the sound or the subtitles."""
        format_ = FORMATS[self.target.suffix.lower()]
        try:
            with contextlib.ExitStack() as stack:
                out = stack.enter_context(av.open(io.BytesIO(), "w", format=format_))
                self._encoder(out)
                _copies(out, container)
                out.start_encoding()
                stack.pop_all()  # never closed: there is nothing to finish
        except (av.error.FFmpegError, ValueError):
            raise InputError(
                f"{self.target}: {self.target.suffix} cannot hold {self.codec} with the sound and subtitles of "
                f"{self.source}; name an output that ends in .mkv"
            ) from None

    # --- segments ---

    def begin(self, parts: Path) -> None:
        """A folder with the finished segments of the very same job, or an empty one."""
        state = self.source.stat()
        identity = {
            "source": [str(self.source.resolve()), state.st_size, state.st_mtime_ns],
            "network": self.upscaler.identity,
            "scales": [str(self.scale), str(self.through)],
            "how": [self.codec, self.layout, self.tile, self.batch, SEGMENT, av.__version__],
        }
        job = parts / "job.json"
        text = json.dumps(identity)
        if not (job.is_file() and job.read_text() == text):
            shutil.rmtree(parts, ignore_errors=True)
            with whole(job) as temporary:
                temporary.write_text(text)

    def run(self, container: InputContainer, parts: Path, advance: Callable[[float, float], object]) -> Video:
        """Upscale what is not there yet, segment by segment."""
        seconds = (container.duration or 0) / av.time_base
        expected = container.streams[self.index].frames or max(1.0, seconds * float(self.rate))
        frames = self._frames(container)
        count, worked, began = 0, 0, time.perf_counter()
        for number in itertools.count():
            segment = list(itertools.islice(frames, 1))
            if not segment:
                break
            rest = itertools.chain(segment, itertools.islice(frames, SEGMENT - 1))
            path = parts / f"{number:06}.nut"
            if path.is_file():
                done = sum(1 for _ in rest)
                advance(done / expected, 0)
            else:
                done = 0
                with whole(path) as temporary, self._segment(temporary) as encode:
                    while batch := list(itertools.islice(rest, self.batch)):
                        encode(self._upscaled(batch))
                        done += len(batch)
                        worked += len(batch)
                        advance(len(batch) / expected, worked / (time.perf_counter() - began))
            count += done
        if count == 0:
            raise InputError(f"{self.source}: has no frames")
        return Video(count, self.size[1], self.size[0], worked / (time.perf_counter() - began))

    def _frames(self, container: InputContainer) -> Iterator[VideoFrame]:
        """Every frame in order, with a time. Raises InputError where they change in size or the file is cut off."""
        end, count, last = 0.0, 0, None
        start = (container.start_time or 0) / av.time_base
        step = round(1 / (self.time_base * self.rate))
        for packet in container.demux():
            if packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != self.index:
                continue
            for frame in cast(list[VideoFrame], packet.decode()):
                if (frame.height, frame.width) != (self.height, self.width):
                    raise InputError(
                        f"{self.source}: frame {count + 1} is {frame.width}×{frame.height}, those before it "
                        f"{self.width}×{self.height}; cut the video there"
                    )
                if frame.pts is None:
                    frame.pts = 0 if last is None else last + max(1, step)
                if last is not None and frame.pts <= last:
                    raise InputError(f"{self.source}: the times go back at frame {count + 1}; remux it with ffmpeg")
                if last is None:
                    self.rotation = frame.rotation
                last, count = frame.pts, count + 1
                yield frame
        announced = (container.duration or 0) / av.time_base
        if count and announced - (end - start) > MISSING:
            raise InputError(
                f"{self.source}: is cut off after {end - start:.1f} of {announced:.1f} s; copy or download it again"
            )

    @contextlib.contextmanager
    def _segment(self, path: Path) -> Iterator[Callable[[list[VideoFrame]], None]]:
        durations: dict[int, int] = {}
        with path.open("wb") as file, av.open(file, "w", format="nut", options={"fflags": "+bitexact"}) as out:
            stream = self._encoder(out)

            def mux(frame: VideoFrame | None) -> None:
                for packet in stream.encode(frame):
                    if packet.pts in durations:
                        packet.duration = durations.pop(packet.pts)
                    out.mux(packet)

            def encode(frames: list[VideoFrame]) -> None:
                for frame in frames:
                    if frame.duration and frame.pts is not None:
                        durations[frame.pts] = frame.duration
                    mux(frame)

            yield encode
            mux(None)

    def _encoder(self, out: OutputContainer) -> VideoStream:
        name, options = CODECS[self.codec]
        stream = cast(VideoStream, out.add_stream(name, rate=self.rate, options=dict(options)))
        stream.height, stream.width = self.size
        stream.pix_fmt = self.layout
        stream.time_base = stream.codec_context.time_base = self.time_base
        for attribute, value in self.handed_on.items():
            setattr(stream.codec_context, attribute, value)
        with _priority_kept():
            stream.codec_context.open()
        return stream

    # --- frames ---

    def _upscaled(self, frames: list[VideoFrame]) -> list[VideoFrame]:
        kept = [frame if frame.format.name == self.layout else _converted(frame, self.layout) for frame in frames]
        planes = zip(*([_samples(plane, self.depth) for plane in frame.planes] for frame in kept), strict=True)
        outs = [VideoFrame(self.size[1], self.size[0], self.layout) for _ in frames]
        peak = 2**self.depth - 1
        tile = math.ceil(self.tile * self.through / self.scale)
        for number, plane in enumerate(planes):
            height, width = outs[0].planes[number].height, outs[0].planes[number].width
            low = torch.from_numpy(np.stack(plane).astype(np.float32))[:, None].to(self.upscaler.device) / peak
            if number == 0:
                luma = self.upscaler.luma(self._resampled(low, self.through, *self.made), tile)
                high = self._resampled(luma, self.scale / self.through, height, width)
            else:
                high = self._resampled(low, self.scale, height, width)
            levels = (high[:, 0].clamp(0, 1) * peak + 0.5).floor().cpu().numpy()
            for out, array in zip(outs, levels, strict=True):
                _samples(out.planes[number], self.depth)[:] = array
        for frame, out in zip(frames, outs, strict=True):
            out.pts, out.time_base, out.duration = frame.pts, self.time_base, frame.duration
            for attribute in COLOUR:
                setattr(out, attribute, getattr(frame, attribute))
        return outs

    @staticmethod
    def _resampled(planes: Tensor, factor: Fraction, height: int, width: int) -> Tensor:
        rows, down = resampling(planes.shape[2], factor, 0, height)
        columns, across = resampling(planes.shape[3], factor, 0, width)
        return down.to(planes) @ planes[:, :, rows, columns] @ across.to(planes).T

    # --- all in one file ---

    def join(self, container: InputContainer, parts: Path, frames: int) -> None:
        """The segments' packets and the copied streams', merged by their times into the target."""
        segments = [parts / f"{number:06}.nut" for number in range(math.ceil(frames / SEGMENT))]
        format_ = FORMATS[self.target.suffix.lower()]
        options = {"fflags": "+bitexact", "avoid_negative_ts": "disabled"} | (
            {"movflags": "+faststart"} if format_ in ("mp4", "mov") else {}
        )
        with whole(self.target) as temporary, contextlib.ExitStack() as stack:
            out = stack.enter_context(av.open(f"file:{temporary}", "w", format=format_, options=options))
            video = self._encoder(out)  # not to encode with, but its header is the segments'
            source = container.streams[self.index]
            video.metadata.update(source.metadata)
            video.disposition = source.disposition
            if self.rotation:
                video.set_display_rotation(self.rotation)
            copies = _copies(out, container)
            out.metadata.update(container.metadata)
            with contextlib.suppress(av.error.FFmpegError, ValueError, NotImplementedError):
                out.set_chapters(container.chapters())
            copied = (packet for packet in container.demux(list(copies)) if packet.dts is not None) if copies else ()
            for packet in heapq.merge(_packets(segments), copied, key=lambda packet: packet.dts * packet.time_base):
                packet.stream = copies.get(packet.stream, video)
                out.mux_one(packet)


@contextlib.contextmanager
def _priority_kept() -> Iterator[None]:
    """For root SVT-AV1 puts the thread that opens it, and all its own, before whatever else a machine does (SCHED_FIFO,
    priority 99), and other processes starve; here they get back what the caller had."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # one that has ended
                if os.sched_getscheduler(int(thread)) != policy:
                    os.sched_setscheduler(int(thread), policy, priority)


def _copies(out: OutputContainer, container: InputContainer) -> dict[Any, Any]:
    """Streams of sound and subtitles, and what they become in `out`; fonts go along where they can."""
    copies: dict[Any, Any] = {}
    for stream in container.streams:
        if stream.type in ("audio", "subtitle"):
            copy = out.add_stream_from_template(stream, opaque=True)
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            copies[stream] = copy
        elif isinstance(stream, AttachmentStream) and out.format.name == "matroska":
            out.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
    return copies


def _packets(segments: list[Path]) -> Iterator[Any]:
    for path in segments:
        with av.open(f"file:{path}", "r", format="nut") as part:
            yield from (packet for packet in part.demux(video=0) if packet.dts is not None)


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[InputContainer]:
    """FFmpeg on a file that is open; nothing else is opened, whatever a playlist or a list of files says."""

    def refuse(url: str, flags: int, options: dict[str, str]) -> None:
        raise PermissionError(errno.EACCES, "names another file")

    closed = {"protocol_whitelist": "none"}
    with av.open(file, "r", options=closed, metadata_errors="replace", io_open=refuse) as container:
        yield container


def _video_stream(container: InputContainer, source: Path) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams or container.format.name in ("tty", "image2"):
        raise InputError(f"{source}: has no video")
    stream = streams[0]
    if not stream.codec_context.width or not stream.codec_context.pix_fmt:
        raise InputError(f"{source}: has no frames that can be decoded; copy or download it again")
    stream.thread_type = "AUTO"
    return stream


@contextlib.contextmanager
def _translated(source: Path) -> Iterator[None]:
    """FFmpeg's errors as a line; a full disk as what it is."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise OSError(error.errno, error.strerror) from None
        reason = " ".join(str(error.strerror).split())[:120]
        raise InputError(f"{source}: is no video, damaged or cut off ({reason}); copy or download it again") from None


def _converted(frame: VideoFrame, layout: str) -> VideoFrame:
    found = frame.reformat(format=layout)
    found.pts, found.time_base = frame.pts, frame.time_base
    return found


def _samples(plane: VideoPlane, depth: int) -> NDArray[Any]:
    """A plane's samples as (H, W), which can be written to."""
    array = np.frombuffer(memoryview(plane), np.uint8 if depth == 8 else np.uint16)
    return array.reshape(-1, plane.line_size // array.itemsize)[: plane.height, : plane.width]
