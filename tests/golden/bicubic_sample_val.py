"""Bicubic's PSNR and SSIM on the embedded validation images, one scale each.

`python tests/golden/bicubic_sample_val.py` writes bicubic_sample_val.json anew. That takes a reason: these
figures move only when decoding, luma, resize or the metrics change.
"""

import json
import platform
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from data_prep.prepare import ensure_sample
from vdsr import benchmark
from vdsr.data import load_pictures
from vdsr.net import Bicubic
from vdsr.shards import ShardSet

COMMAND = "python tests/golden/bicubic_sample_val.py"
SCALES = {"sample_val-astronaut": 2.0, "sample_val-chelsea": 3.0, "sample_val-coffee": 4.0}
FIELDS = ("image", "scale", "psnr", "ssim")


def measure(folder):
    """The rows of the golden file, computed now; the images are prepared in `folder`."""
    ensure_sample(folder)
    rows = []
    for picture in load_pictures(ShardSet.open(folder / "sample_val")):
        rows += benchmark.run(Bicubic(), [picture], [SCALES[picture.sample.key]], torch.device("cpu"))
    return [{field: asdict(row)[field] for field in FIELDS} for row in rows]


def main():
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    versions = {name: version(name) for name in ("torch", "torchmetrics", "numpy", "pillow", "scikit-image")}
    machine = f"{platform.system()} {platform.machine()}, CPU, Python {platform.python_version()}"
    content = {"command": COMMAND, "machine": machine, "versions": versions, "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
