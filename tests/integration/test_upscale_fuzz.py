"""Fifty damaged or odd files made from good ones: no traceback, no hang, memory within its bound."""

import io
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from vdsr import weights
from vdsr.net import VDSR

ROOT = Path(__file__).parents[2]
LONGEST = 10  # seconds of one file's work
BOUND = 600_000_000


def good_files():
    """A picture or video of each kind, small: name → bytes."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Maker"
    found = {}
    for kind, suffix in (
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("WEBP", "webp"),
        ("TIFF", "tiff"),
        ("BMP", "bmp"),
        ("GIF", "gif"),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        found[suffix] = buffer.getvalue()
    for suffix, name in (("mp4", "mp4"), ("mkv", "matroska")):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=name) as out:
            stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = 40, 56, "yuv420p"
            for _ in range(8):
                out.mux(stream.encode(av.VideoFrame.from_image(image)))
            out.mux(stream.encode(None))
        found[suffix] = buffer.getvalue()
    return found


def damaged(data, rng):
    """The same cut, with bytes changed, numbers made enormous, parts repeated or missing."""
    data = bytearray(data)
    way = rng.choice(["cut", "bytes", "header", "huge", "repeat", "drop", "other end"])
    at = rng.randrange(len(data))
    if way == "cut":
        del data[at:]
    elif way == "bytes":
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif way == "header":
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    elif way == "huge":
        at = rng.randrange(min(200, len(data) - 4))
        data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\x80\0"])
    elif way == "repeat":
        data[at:at] = data[: rng.randrange(1, len(data))]
    elif way == "drop":
        del data[at : at + rng.randrange(1, 200)]
    else:
        data += bytes(rng.randrange(256) for _ in range(300))
    return bytes(data)


def test_fifty_damaged_files(measured, tmp_path):
    torch.manual_seed(5)
    network = weights.save(VDSR(3, 8), tmp_path / "small.safetensors")
    rng = random.Random(0)
    good = good_files()
    (tmp_path / "in").mkdir()
    names = []
    for number in range(50):
        suffix = list(good)[number % len(good)]
        lying = rng.choice(list(good)) if number % 10 == 9 else suffix  # a name of another kind
        names.append(f"{number:02}.{lying}")
        (tmp_path / "in" / names[-1]).write_bytes(damaged(good[suffix], rng))
    before = {name: (tmp_path / "in" / name).read_bytes() for name in names}

    line = [*measured("src/upscale.py"), f"weights={network}", "input=in", "accelerator=cpu"]
    line += [f"memory={BOUND}", "scale=3"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "PYTHONUNBUFFERED": "1", "COLUMNS": "200",
    }  # fmt: skip
    with (tmp_path / "err.txt").open("w") as err:
        process = subprocess.Popen(
            line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=err, text=True, encoding="utf-8"
        )
        watchdog = threading.Timer(300, process.kill)
        watchdog.start()
        said, moments = [], [time.monotonic()]
        for text in process.stdout:
            said.append(text)
            moments.append(time.monotonic())
        process.wait()
        process.stdout.close()
        watchdog.cancel()

    complaint = (tmp_path / "err.txt").read_text()
    left_out = [text.split(":")[0].removeprefix("left out in/") for text in said if text.startswith("left out ")]
    assert process.returncode == 1
    assert "Traceback" not in complaint
    assert complaint.splitlines()[-1] == f"error: in: {len(left_out)} of 50 left out, named above"
    assert len(said) == 50  # a line for each
    assert 20 <= len(left_out) < 50
    assert max(b - a for a, b in itertools.pairwise(moments[1:])) < LONGEST
    if sys.platform == "linux":
        assert int((tmp_path / "peak").read_text()) < BOUND
    assert {name: (tmp_path / "in" / name).read_bytes() for name in names} == before
    written = sorted(path.name for path in (tmp_path / "in_x3").rglob("*"))
    assert len(written) == 50 - len(left_out)
    for name in written:
        if name.endswith((".mp4", ".mkv")):
            with av.open(str(tmp_path / "in_x3" / name)) as video:
                assert sum(1 for _ in video.decode(video=0)) > 0
        else:
            with Image.open(tmp_path / "in_x3" / name) as image:
                image.load()
