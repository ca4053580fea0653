import io
import os
from types import SimpleNamespace

# Before torch is imported, and for subprocesses too: these networks are too small to share among threads,
# which only wait for one another where a machine is busy.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

from vdsr import shards  # noqa: E402


@pytest.fixture(scope="session")
def noise():
    """Make a picture of uniform noise: any error shows."""

    def make(seed, height, width, colour=False):
        shape = (height, width, 3) if colour else (height, width)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture(scope="session")
def structured():
    """Make a grey picture of sharp discs and bars: detail that bicubic blurs and a network can sharpen."""

    def make(seed, height=96, width=96):
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[:height, :width]
        image = np.full((height, width), 128.0)
        for _ in range(30):
            y, x, radius, level = rng.uniform(0, [height, width, 14, 255])
            disc = (rows - y) ** 2 + (columns - x) ** 2 < (radius + 3) ** 2
            bar = (abs(rows - y) < 3 + radius / 4) & (abs(columns - x) < 3 + radius)
            image[disc if rng.random() < 0.5 else bar] = level
        return image.astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def prepare():
    """Write pictures (name → pixels) as a prepared folder."""

    def make(folder, pictures):
        files = {}
        for name, pixels in pictures.items():
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            files[f"{name}.png"] = buffer.getvalue()
        samples = shards.with_unique_keys(shards.describe(data, folder.name, file) for file, data in files.items())
        return shards.write(folder, samples, lambda sample: files[sample.file], licence="", source="generated")

    return make


@pytest.fixture(scope="session")
def sets(tmp_path_factory, prepare, structured):
    """Two small prepared folders: `train` with four pictures, `val` with two."""
    root = tmp_path_factory.mktemp("sets")
    prepare(root / "train", {f"t{seed}": structured(seed) for seed in range(4)})
    prepare(root / "val", {f"v{seed}": structured(seed, 60, 71) for seed in (10, 11)})
    return SimpleNamespace(root=root, train=str(root / "train"), val=str(root / "val"))
