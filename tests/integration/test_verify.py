import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdsr.shards import describe, with_unique_keys, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prepared(tmp_path):
    files = {}
    for number in range(3):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 5, 3), number, dtype=np.uint8)).save(buffer, "PNG")
        files[f"t{number}.png"] = buffer.getvalue()
    samples = with_unique_keys(describe(data, "T", file) for file, data in files.items())
    return write(tmp_path / "demo", samples, lambda sample: files[sample.file], licence="", source="")


def verify(*arguments):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(ROOT / "data_prep" / "verify.py"), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_whole_folder(prepared):
    done = verify(f"path={prepared.root}")
    expected = f"OK {prepared.root}: 3 images in 1 shard, 0.0 MB, checksum {prepared.checksum[:16]}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_each_fault_on_a_line(prepared):
    tar = prepared.root / "demo-00000.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"IHDR") + 30] ^= 1
    tar.write_bytes(data)
    (prepared.root / "extra.tar").write_bytes(b"")
    done = verify(f"path={prepared.root}")
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{prepared.root}: extra.tar is not in index.json",
        f"{prepared.root}: demo-00000.tar was changed: its SHA-256 differs; damaged: T/t0.png",
    ]


def test_no_shards_there(tmp_path):
    done = verify(f"path={tmp_path}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: no shards in {tmp_path}; make them with `python data_prep/prepare.py")
    assert done.stderr.count("\n") == 1


def test_path_must_be_given():
    done = verify()
    assert done.returncode == 1
    assert "path" in done.stderr
    assert done.stderr.count("\n") == 1
