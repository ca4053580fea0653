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

from vdsr import kernels as own_kernels  # noqa: E402
from vdsr import records, shards  # noqa: E402
from vdsr.net import VDSR  # noqa: E402


def pytest_collection_modifyitems(items):
    """A process runs whole files, whose tests share what they have made, and one all of Slurm: there is one cluster."""
    for item in items:
        folder = item.path.parent
        item.add_marker(pytest.mark.xdist_group("slurm" if folder.name == "slurm" else item.path.name))


@pytest.fixture(scope="session")
def kernels():
    """Our own kernels; skips where the processor has none, and where they cannot be compiled, except on CI."""
    if reason := own_kernels.missing(VDSR()):
        if os.environ.get("CI") == "true" and not own_kernels.unsupported():
            pytest.fail(f"no kernels of our own: {reason}")
        pytest.skip(f"no kernels of our own: {reason}")


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


@pytest.fixture(scope="session")
def recorded():
    """Write a finished run's record: `recorded(path, name=…, gain=…, settings={"model.depth": 5}, **changes)`."""

    def make(path, name="depth_sweep", gain=0.5, settings=(), points=30, **changes):
        config = {
            "model": {"_target_": "vdsr.net.VDSR", "depth": 8, "width": 64, "residual": True},
            "data": {"train": "data/sample", "scales": [2, 3, 4], "patch": 41, "batch_size": 16},
            "optim": {"lr": 0.1},
            "clip": {"_target_": "vdsr.clip.Adjustable", "theta": 1e-4},
            "trainer": {"max_steps": 20 * points, "accumulate_grad_batches": 1, "precision": "32-true"},
            "name": name,
            "seed": 0,
        }
        for key, value in dict(settings).items():
            *place, last = key.split(".")
            inner = config
            for part in place:
                inner = inner[part]
            inner[last] = value
        overrides = [f"{key}={value}" for key, value in dict(settings).items()]

        def scores(gain):
            bicubic = {"x2": 32.51, "x3": 29.99, "x4": 28.54}
            figures = {
                s: {"psnr": b + gain, "ssim": 0.9, "bicubic_psnr": b, "bicubic_ssim": 0.8} for s, b in bicubic.items()
            }
            return {"sample_val": figures}

        steps = [20 * (i + 1) for i in range(points)]
        record = {
            "format": 1, "name": name, "overrides": [f"+experiment={name}", *overrides], "config": config,
            "status": "finished", "steps": steps[-1], "seconds": 61.5, "precision": "32-true",
            "commit": "0123456789abcdef", "started": "2026-11-22T17:02:20Z",
            "hardware": {"cpu": "Abacus", "cores": 2, "threads": 2, "gpus": []},
            "data": {"train": "sample", "checksums": {"sample": "fedcba9876543210"}, "patches_per_epoch": 5619},
            "network": {"name": "VDSR", "parameters": 222785}, "metrics": scores(gain),
            "curve": [
                {"step": s, "loss": 60 / s, "gradient_norm": 7000 / s, "patches_per_second": 400 + s % 7} for s in steps
            ],
            "validations": [
                {"step": s, "epoch": 1.0, "psnr": 1.0, "scores": scores(gain * s / steps[-1])} for s in steps[9::10]
            ],
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(path, record | changes)
        return path

    return make
