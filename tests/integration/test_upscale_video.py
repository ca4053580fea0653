"""`src/upscale.py` on videos: the same frames at the same times, the same sound, whatever happens in between."""

import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vdsr import video, weights
from vdsr.errors import InputError
from vdsr.net import VDSR
from vdsr.resize import imresize
from vdsr.upscaler import Upscaler

ROOT = Path(__file__).parents[2]
TICK = Fraction(1, 15360)


def picture(number, height, width):
    """A frame of moving bars, (H, W, 3)."""
    grey = np.add.outer(np.arange(height) * 3 + number * 2, np.arange(width) * 2) % 256
    return np.stack([grey, np.roll(grey, number, 0), 255 - grey], axis=-1).astype(np.uint8)


def film(path, frames=30, size=(48, 64), sound="aac", layout="yuv420p", format_=None, sizes=(), subtitles=None):
    """Write a video whose frames come at uneven times, with a tone beside it."""
    with av.open(str(path), "w", format=format_) as out:
        stream = out.add_stream("libx264", rate=30, options={"crf": "20", "preset": "ultrafast"})
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.time_base = layout, TICK
        audio = out.add_stream(sound, rate=48000) if sound else None
        texts = av.open(str(subtitles)) if subtitles else None
        copy = out.add_stream_from_template(texts.streams[0]) if texts else None
        out.start_encoding()  # writes a header even if no frames follow
        at = 0
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(format=layout)
            frame.pts, frame.time_base = at, TICK
            at += 512 + 128 * (number % 7 == 0)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        samples = int(at * TICK * 48000)
        for start in range(0, samples if audio else 0, 1024):
            wave = np.sin(np.arange(start, min(start + 1024, samples)) / 20) * 8000
            frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            out.mux(audio.encode(frame))
        if audio:
            out.mux(audio.encode(None))
        if texts:
            for packet in texts.demux():
                if packet.dts is not None:
                    packet.stream = copy
                    out.mux(packet)
            texts.close()
    return path


def times(path):
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def packets(path, kind):
    with av.open(str(path)) as container:
        found = [p for p in container.demux() if p.stream.type == kind and p.dts is not None]
        return [(p.pts * p.time_base, bytes(p)) for p in found]


def samples(frame, number):
    plane = frame.planes[number]
    kind = np.uint16 if "10" in frame.format.name else np.uint8
    array = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // np.dtype(kind).itemsize)
    return array[: plane.height, : plane.width].copy()


@pytest.fixture(scope="module")
def upscaler():
    torch.manual_seed(5)
    net = VDSR(3, 8)
    net.body[-1].weight.data *= 0.1
    return Upscaler(net, scales=[2, 3], precision="32-true")


@pytest.fixture(scope="module")
def small_film(tmp_path_factory):
    return film(tmp_path_factory.mktemp("film") / "film.mp4")


# --- 300 frames with sound ---


@pytest.fixture(scope="module")
def long_film(tmp_path_factory):
    return film(tmp_path_factory.mktemp("film") / "film.mp4", frames=300, size=(32, 48))


# src/upscale.py that is killed before a batch of frames once KILL_AT have been made, and counts them in the file `made`
COUNTED = f"""
import os, pathlib, runpy, signal, sys
from vdsr import video
upscaled, made = video._Job._upscaled, 0
def counted(self, frames):
    global made
    if made >= int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    made += len(frames)
    pathlib.Path("made").write_text(str(made))
    return upscaled(self, frames)
video._Job._upscaled = counted
sys.argv[0] = {str(ROOT / "src/upscale.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_three_hundred_frames_killed_in_the_middle_and_resumed(long_film, tmp_path):
    torch.manual_seed(5)
    network = weights.save(VDSR(3, 8), tmp_path / "small.safetensors")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    fixed = [f"weights={network}", "accelerator=cpu", "precision=32-true", f"input={long_film}"]

    def upscale(output, kill_at=1000):
        line = [sys.executable, "-c", COUNTED, *fixed, f"output={output}"]
        return subprocess.run(
            line, cwd=tmp_path, env=environment | {"KILL_AT": str(kill_at)}, capture_output=True, text=True, check=False
        )

    done = upscale("whole.mp4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "whole.mp4: 300 frames of 96×64, " in done.stdout
    assert " frames/s, " in done.stdout

    assert upscale("resumed.mp4", kill_at=video.SEGMENT + 30).returncode == -signal.SIGKILL
    parts = tmp_path / ".resumed.mp4.parts"
    assert (parts / "000000.nut").exists()
    assert not (tmp_path / "resumed.mp4").exists()
    resumed = upscale("resumed.mp4")
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "made").read_text() == str(300 - video.SEGMENT)
    assert (tmp_path / "resumed.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.mp4*")) == ["resumed.mp4", "whole.mp4"]
    assert not parts.exists()

    assert times(tmp_path / "whole.mp4") == times(long_film)
    assert len(times(long_film)) == 300
    assert packets(tmp_path / "whole.mp4", "audio") == packets(long_film, "audio")
    assert len(packets(long_film, "audio")) > 400


# --- what comes out ---


@pytest.mark.parametrize(("scale", "trained"), [("2", 2), ("3/2", 2), ("5/2", 3), ("7/2", Fraction(7, 2))])
def test_luma_through_the_network_chroma_by_bicubic(upscaler, small_film, tmp_path, scale, trained):
    """Without loss, every plane can be looked at."""
    scale = Fraction(scale)
    done = video.upscale(small_film, tmp_path / "out.mkv", upscaler, scale, "ffv1")
    assert done[:3] == (30, 64 * scale, 48 * scale)
    with av.open(str(small_film)) as low, av.open(str(tmp_path / "out.mkv")) as high:
        for before, after in zip(low.decode(video=0), high.decode(video=0), strict=True):
            for number, height in ((0, 48), (1, 24), (2, 24)):
                plane = torch.from_numpy(samples(before, number).astype(np.float32))[None, None] / 255
                if number == 0:
                    plane = imresize(upscaler.luma(imresize(plane, Fraction(trained))), scale / trained)
                else:
                    plane = imresize(plane, scale)
                wanted = plane[0, 0].clamp(0, 1).numpy() * 255
                assert wanted.shape == (scale * height, scale * height * 4 / 3)
                assert abs(samples(after, number) - wanted).max() < 0.51


@pytest.mark.parametrize(
    ("codec", "suffix", "name"),
    [
        (None, ".mp4", "h264"),
        ("h265", ".mp4", "hevc"),
        ("av1", ".mp4", "libdav1d"),
        (None, ".webm", "libdav1d"),
        ("ffv1", ".mkv", "ffv1"),
        ("h264", ".mov", "h264"),
    ],
)
def test_codecs_and_containers(upscaler, tmp_path, codec, suffix, name):
    source = film(tmp_path / "film.mkv", frames=6, sound="libopus" if suffix == ".webm" else None)
    video.upscale(source, tmp_path / f"out{suffix}", upscaler, Fraction(3, 2), codec)
    with av.open(str(tmp_path / f"out{suffix}")) as out:
        stream = out.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == (name, 96, 72)
    assert times(tmp_path / f"out{suffix}") == pytest.approx(times(source), abs=1e-3)
    assert [data for _, data in packets(tmp_path / f"out{suffix}", "audio")] == [
        data for _, data in packets(source, "audio")
    ]


def test_matroska_to_matroska_with_subtitles(upscaler, tmp_path):
    (tmp_path / "s.srt").write_text(
        "1\n00:00:00,100 --> 00:00:00,500\nHëllo\n\n2\n00:00:00,600 --> 00:00:00,900\nyou\n"
    )
    source = film(tmp_path / "film.mkv", subtitles=tmp_path / "s.srt", sound="libopus")
    video.upscale(source, tmp_path / "out.mkv", upscaler, Fraction(2))
    assert times(tmp_path / "out.mkv") == times(source)
    for kind in ("audio", "subtitle"):
        assert packets(tmp_path / "out.mkv", kind) == packets(source, kind) != []
    with pytest.raises(InputError, match=r"\.webm cannot hold h264 .*; name an output that ends in \.mkv"):
        video.upscale(source, tmp_path / "out.webm", upscaler, Fraction(2), "h264")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mkv", "out.mkv", "s.srt"]


def test_odd_sizes_are_made_even(upscaler, tmp_path):
    source = film(tmp_path / "film.mp4", frames=4, size=(34, 50), sound=None)
    done = video.upscale(source, tmp_path / "out.mp4", upscaler, Fraction(3, 2))
    assert done[:3] == (4, 74, 50)  # 75 × 51


@pytest.mark.parametrize("layout", ["yuv444p", "yuv422p", "yuv420p10le"])
def test_chroma_and_depth_stay(upscaler, tmp_path, layout):
    source = film(tmp_path / "film.mkv", frames=3, layout=layout, sound=None)
    video.upscale(source, tmp_path / "out.mkv", upscaler, Fraction(2), "ffv1")
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert out.streams.video[0].pix_fmt == layout
        found = samples(next(out.decode(video=0)), 1)
    with av.open(str(source)) as low:
        before = samples(next(low.decode(video=0)), 1)
    assert found.shape == (2 * before.shape[0], 2 * before.shape[1])
    peak = 1023 if "10" in layout else 255
    assert found.max() > peak / 2
    assert abs(found[::2, ::2].astype(int) - before).mean() < peak / 25


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="not on this system")
def test_no_encoder_puts_itself_before_the_rest_of_the_machine(upscaler, small_film, tmp_path):
    """SVT-AV1 does, for root."""

    def during(share, fps):
        found.update(os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task"))

    found = set()
    video.upscale(small_film, tmp_path / "out.mkv", upscaler, Fraction(2), "av1", advance=during)
    during(1, 0)
    assert found == {os.SCHED_OTHER}


def test_a_gif_becomes_a_video(command, tmp_path):
    from PIL import Image

    frames = [Image.fromarray(picture(n, 32, 48)) for n in range(5)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=120)
    torch.manual_seed(5)
    network = weights.save(VDSR(3, 8), tmp_path / "small.safetensors")
    result = command(tmp_path, "src/upscale.py", f"weights={network}", "input=moving.gif")
    assert result.status == 0, result.err
    assert result.out.startswith("moving_x2.mp4: 5 frames of 96×64, ")
    assert times(tmp_path / "moving_x2.mp4") == times(tmp_path / "moving.gif")


# --- what cannot be used ---


def refused(upscaler, source, words, target="out.mp4", scale=2):
    before = source.read_bytes()
    with pytest.raises(InputError) as caught:
        video.upscale(source, source.with_name(target), upscaler, Fraction(scale))
    assert str(caught.value).startswith(f"{source}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert source.read_bytes() == before
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_a_changing_frame_size(upscaler, tmp_path):
    parts = [film(tmp_path / f"{n}.ts", frames=8, size=size, sound=None) for n, size in enumerate([(48, 64), (32, 48)])]
    source = tmp_path / "film.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    refused(upscaler, source, "frame 9 is 48×32, those before it 64×48")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cut_off_in_the_middle(upscaler, tmp_path, suffix, share):
    source = film(tmp_path / f"film{suffix}", frames=90, sound=None)
    source.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    refused(upscaler, source, "cut off")


def test_no_video_and_no_frames(upscaler, tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        frame.rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    refused(upscaler, tmp_path / "sound.mp4", "has no video")
    (tmp_path / "sound.mp4").unlink()
    refused(upscaler, film(tmp_path / "none.mkv", frames=0, sound=None), "is no video, damaged or cut off")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("text.mp4", b"no video\n" * 100),
        ("list.mp4", b"ffconcat version 1.0\nfile other.mp4\n"),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n"),
    ],
)
def test_no_videos_and_lists_of_others(upscaler, small_film, tmp_path, name, content):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "other.mp4").write_bytes(small_film.read_bytes())
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        video.upscale(folder / name, tmp_path / "out.mp4", upscaler, Fraction(2))
    assert str(caught.value).startswith(f"{folder / name}: ")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_frames_that_are_too_large_for_the_memory(small_film, tmp_path):
    upscaler = Upscaler(VDSR(3, 8), memory=10**12)
    upscaler._room = 61_000_000
    with pytest.raises(InputError, match=r"film\.mp4: needs [\d,]+ MB more than memory= allows"):
        video.upscale(small_film, tmp_path / "out.mp4", upscaler, Fraction(8))


def test_the_disk_is_full(upscaler, small_film, disk):
    folder = disk("size=60k")
    with pytest.raises(InputError, match="No space left on device; free space"):
        video.upscale(small_film, folder / "out.mkv", upscaler, Fraction(2), "ffv1")
    assert list(folder.iterdir()) == []


def test_another_job_does_not_go_on_from_these_parts(upscaler, small_film, tmp_path):
    parts = tmp_path / ".out.mp4.parts"
    parts.mkdir()
    (parts / "job.json").write_text("of another network")
    (parts / "000000.nut").write_bytes(b"no frames")
    assert video.upscale(small_film, tmp_path / "out.mp4", upscaler, Fraction(2)).frames == 30
    assert times(tmp_path / "out.mp4") == times(small_film)
